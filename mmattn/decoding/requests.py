"""What the engine decodes, from samples: each as every branch and probe of a method sees it, in tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from mmattn.adapters import Adapter, Prepared, Sample
from mmattn.decoding.method import Method
from mmattn.decoding.recorder import Capture
from mmattn.decoding.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """A sample ready to decode.

    Attributes:
        sample: as the user gave it; noise hangs on its pictures, whatever the method makes of them.
        key: names its random streams, those of its pictures aside.
        repeat: how many samples with this key stand before it; they draw other tokens, from the same scores.
        room: tokens that may be generated.
        others: the sample as each further branch of the method sees it; empty if it does not change for any.
        probes: the sample as each probe sees it, by name.
    """

    sample: Sample
    prepared: Prepared
    key: str
    repeat: int
    room: int
    others: tuple[Prepared, ...] = ()
    probes: Mapping[str, Prepared] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What holds for all samples of one `generate` call.

    Attributes:
        fast: on a GPU, decode by a step that is captured once and replayed, where the model and the method allow it.
        share: let prompts about one picture share its prefill.
        scores: token ids, by any name, whose scores for the first token are kept.
    """

    method: Method
    sampling: Sampling
    stop_ids: frozenset[int]
    seed: int
    capture: Capture | None = None
    fast: bool = True
    share: bool = True
    scores: Mapping[str | int, int] | None = None


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
