"""Batch sizes by free memory."""

from __future__ import annotations

from typing import Any

import pytest

import mmattn
from mmattn.adapters import Sample
from mmattn.decoding.requests import Request
from mmattn.decoding.room import affordable
from tests.tiny import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_it_grows_with_the_memory_and_shrinks_with_the_branches(name: str, pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*FAMILIES[name]())
    samples = [Sample((pictures[0],), "what?"), Sample((pictures[1],), "what is that on the left?")]
    prepared = vlm.adapter.prepare(samples)
    requests = [Request(one, each, "", 0, 32) for one, each in zip(samples, prepared, strict=True)]
    sizes = [affordable(vlm.adapter, requests, 1, 1 << power) for power in range(10, 34)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] == 64
    assert {4, 8, 16, 32} <= set(sizes)
    twice = [affordable(vlm.adapter, requests, 2, 1 << power) for power in range(11, 35)]
    assert twice == [min(one, 32) for one in sizes]
    assert affordable(vlm.adapter, requests, 3, 1 << 40) == 16


def test_it_is_what_generate_takes(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    done: list[int] = []
    vlm.generate(pictures[0], ["what?"] * 17, max_new_tokens=1, on_done=done.append)
    assert done == [16, 1]
