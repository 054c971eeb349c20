"""Comparisons of two methods, against cases worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from math import comb
from typing import Any

import pytest

from mmattn.decoding import resolve
from mmattn.eval import compare, cost
from mmattn.eval.types import Record
from tests.eval.fakes import World
from tests.eval.runs import benchmarks, run


def said(rights: str, method: str = "m", **more: Any) -> list[Record]:
    """One record a letter: r(ight), w(rong), f(ailed), and "-" for a question that is missing."""
    return [
        Record(
            "b", method, str(number), f"{number}.png", "?", "failed" if letter == "f" else "done",
            details={} if letter == "f" else {"correct": letter == "r"}, **more,
        )
        for number, letter in enumerate(rights) if letter != "-"
    ]  # fmt: skip


def binomial(k: int, n: int) -> float:
    """Two-sided p of k heads in n throws: twice the smaller tail, as the distribution is symmetric."""
    tail = sum(comb(n, i) for i in range(min(k, n - k) + 1)) / 2**n
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(
    ("ours", "base", "only_this", "only_first"),
    [
        ("rrrrrrrrww", "wwwwwwwrww", 7, 0),
        ("rrwwr", "wwrrr", 2, 2),
        ("rrrrrrwww", "wwwwwwrrr", 6, 3),
        ("rrww", "rrww", 0, 0),
    ],
)
def test_mcnemar_by_hand(ours: str, base: str, only_this: int, only_first: int) -> None:
    got = compare.mcnemar(said(ours), said(base))
    assert got is not None
    assert (got["only_this"], got["only_first"], got["questions"]) == (only_this, only_first, len(ours))
    assert got["p"] == pytest.approx(binomial(only_this, only_this + only_first))


def test_mcnemar_takes_what_both_answered() -> None:
    assert compare.mcnemar(said("r-rf"), said("wwfw")) == {"questions": 1, "only_this": 1, "only_first": 0, "p": 1.0}
    assert compare.mcnemar([], said("w")) is None
    free = [Record("b", "m", "1", "i", "?", "done", answer="A dog.")]
    assert compare.mcnemar(free, free) is None, "a caption is neither right nor wrong"


def test_results_compare_and_break_down(world: World, tmp_path: Any) -> None:
    results = run(world, tmp_path)
    test = results["differences"]["mcnemar"]["pope-random"]["vcd"]
    assert test["questions"] == 18
    assert results["differences"]["mcnemar"]["chair"]["vcd"] is None
    values = {method: one["accuracy"]["value"] for method, one in results["metrics"]["pope-random"].items()}
    assert (test["only_this"] - test["only_first"]) / 18 == pytest.approx(values["vcd"] - values["greedy"])
    by_object: Mapping[str, Any] = results["categories"]["pope-random"]
    pope = benchmarks(world)[0]
    asked = [pope.item(index).meta["object"] for index in range(len(pope))]
    assert {name: one["greedy"]["questions"] for name, one in by_object.items()} == {
        name: asked.count(name) for name in sorted(set(asked))
    }
    right = sum(one["vcd"]["questions"] * one["vcd"]["accuracy"] for one in by_object.values())
    assert right / 18 == pytest.approx(values["vcd"])


def test_what_a_method_costs() -> None:
    told = cost.passes({name: resolve(name) for name in ("greedy", "vcd", "boost+vcd", "pai", "iava")})
    assert {name: one["rows"] for name, one in told.items()} == {
        name: resolve(name.split("+")[-1]).card.branches for name in told
    }
    assert told["greedy"]["extra_passes"] == "none" != told["vcd"]["extra_passes"]
    records = said("rr", seconds=0.5, token_ids=(1, 2, 3), finish_reason="stop", peak_mib=7.0)
    records += said("--r", seconds=1.0, token_ids=(1, 2), finish_reason="length", peak_mib=9.0)
    records += said("---r", token_ids=(1,) * 50, finish_reason="stop")  # an answer known from another list
    assert cost.spent(records) == {
        "m": {"questions": 3, "tokens": 10, "seconds": 2.0, "ms_per_token": 200.0, "peak_mib": 9.0}
    }
