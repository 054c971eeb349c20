"""`mmattn bench`: which lines it has, what they are made of, and when the clock is read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mmattn
from mmattn.bench import measure
from mmattn.bench.measure import _once, _ours, _stock, _stock_contrast
from mmattn.bench.shapes import prompt
from mmattn.cli import app
from mmattn.decoding import resolve
from mmattn.eval.provenance import commit, versions

STEPS = 3


@pytest.fixture(scope="module")
def parts(vlm: mmattn.VLM, pictures: list[Any]) -> tuple[Any, Any]:
    (pixels,) = vlm.adapter.preprocess({"one": pictures[0]})
    return vlm.adapter, pixels


def test_lines_are_what_was_asked_for(parts: tuple[Any, Any]) -> None:
    seen = []
    methods = [resolve("greedy"), resolve("vcd")]
    found = measure(*parts, methods, [2], steps=STEPS, repeats=1, capture=True, on_figures=seen.append)
    rows = ["", ", rows kept", ", rows taken off"]
    stock = [("transformers generate", 1), ("transformers, two calls per step", 2)]
    lines = [*stock, *(("greedy" + row, 1) for row in rows), *(("vcd" + row, 2) for row in rows)]
    assert [(one.what, one.batch, one.branches) for one in found] == [(name, 2, branches) for name, branches in lines]
    assert seen == found
    assert all(one.step_ms > 0 and one.prefill_ms and one.prefill_ms > 0 for one in found)
    assert all(one.tokens_per_s == pytest.approx(1000 * one.batch / one.step_ms, rel=1e-2) for one in found)
    assert all(one.floor_ms is one.peak_gib is one.share_of_floor is None for one in found)  # there is no GPU


def test_two_calls_are_beside_methods_that_contrast_alone(parts: tuple[Any, Any]) -> None:
    found = measure(*parts, [resolve("boost")], [1], steps=1, repeats=1)
    assert [one.what for one in found] == ["transformers generate", "boost"]


def test_plans_tell_once_that_the_prompts_are_read(parts: tuple[Any, Any]) -> None:
    adapter, pixels = parts
    prepared = [prompt(adapter, pixels, seed, 12) for seed in range(2)]
    plans: list[Callable[..., Any]] = [_ours(adapter, prepared, resolve("vcd"), None, True), _stock(adapter, prepared)]
    for plan in (*plans, _stock_contrast(adapter, prepared)):
        for tokens in (1, STEPS):
            told: list[None] = []
            plan(tokens, lambda told=told: told.append(None))
            assert len(told) == 1
    answers = plans[0](STEPS, lambda: None)
    assert [len(one.token_ids) for one in answers] == [STEPS] * 2
    width = len(prepared[0].ids)
    assert plans[1](STEPS, lambda: None).shape[1] in (STEPS, width + STEPS)


def test_the_clock_is_read_at_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=5.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)

    def plan(tokens: int, begun: Callable[[], None]) -> None:
        clock.now += 2
        begun()
        clock.now += tokens

    assert _once(plan, 7) == (2, 7, None)


def test_figures_go_into_a_file(tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench.json"
    words = ["bench", "--methods", "greedy", "--batch-sizes", "1", "--steps", "1", "--repeats", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert [one["what"] for one in report["figures"]] == ["transformers generate", "greedy"]
    assert report["torch"] == torch.__version__
    assert report["commit"] == commit()
    assert report["versions"] == versions()
    assert "greedy" in done.output


@pytest.mark.parametrize("wrong", [["--batch-sizes", "0"], ["--batch-sizes", "two"], ["--random", "gpt-5"]])
def test_what_cannot_be_measured(wrong: list[str]) -> None:
    done = CliRunner().invoke(app, ["bench", *wrong])
    assert done.exit_code != 0
    assert wrong[-1] in str(done.exception) + done.output
