"""From samples to what the engine decodes: each sample as every branch and probe of a method sees it, in tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from mmattn.adapters import Adapter, Prepared, Sample
from mmattn.decoding.engine import Request
from mmattn.decoding.method import Method


def requests_of(
    adapter: Adapter,
    method: Method,
    samples: Sequence[Sample],
    shown: Sequence[Sample],
    names: Sequence[tuple[str, int]],
    longest: int,
    prepare: Callable[[Sequence[Sample]], Sequence[Prepared]],
) -> list[Request]:
    """One request per sample.

    Args:
        samples: as the user gave them. shown: with the pictures that the model is to see.
        names: of the samples' random streams, and how many of that name stand before.
        longest: length limit of an answer.
        prepare: puts samples into tokens.
    """
    changes = [branch.sample for branch in method.branches()]
    probes = method.probes()
    changes += probes.values()
    seen = [[one, *(change(one).still_marked() if change else one for change in changes)] for one in shown]
    prepared = iter(prepare([one for row in seen for one in row]))
    requests = []
    for sample, (key, repeat) in zip(samples, names, strict=True):
        plain, *rest = islice(prepared, 1 + len(changes))
        others = tuple(rest[: len(rest) - len(probes)])
        room = min(longest, *(adapter.room(one) for one in (plain, *others)))
        looked = dict(zip(probes, rest[len(others) :], strict=True))
        requests.append(Request(sample, plain, key, repeat, room, others, looked))
    return requests
