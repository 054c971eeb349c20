"""VAR against its equations, in loops over single rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import mmattn
from mmattn.attention import Site
from mmattn.decoding import VAR
from mmattn.decoding.var import PRESETS, Redistribution
from mmattn.errors import MmattnError
from tests.oracle import Whole, full_matrix, prompt_logits
from tests.stock import inputs_of, is_t5, new_tokens
from tests.test_families import PROMPTS
from tests.tiny import FAMILIES

# Thresholds at which tiny random models have some sinks and some image-centric heads.
FITTING = VAR(tau=1.7, rho=0.8, summ=0.1, p=0.3, start=0, spared=1)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.1))


class _Oracle:
    """Row by row, in numpy; counts the rows that it edits."""

    def __init__(self, method: VAR, dimensions: tuple[int, ...] = ()) -> None:
        self.method, self.dimensions = method, dimensions
        self.edited = self.left = 0

    def __call__(self, whole: Whole) -> torch.Tensor:
        weights = whole.scores.softmax(-1).nan_to_num(0).double().numpy().copy()
        if not self.method.start <= whole.layer < 3 - self.method.spared:
            return torch.tensor(weights).float()
        x = whole.states.double().numpy()
        x = np.abs(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6))
        for sample in range(len(weights)):
            visible = np.flatnonzero(np.isfinite(whole.scores[sample].numpy()).any((0, 1)))
            chosen = self.dimensions or np.flatnonzero(x[sample, visible[0]] > self.method.tau)
            sinks = {j for j in visible if any(x[sample, j, d] > self.method.tau for d in chosen)}
            picture = set(np.flatnonzero(whole.image[sample].numpy()))
            for head in weights[sample]:
                for row in head:
                    self._row(row, sinks, picture)
        return torch.tensor(weights).float()

    def _row(self, row: Any, sinks: set[int], picture: set[int]) -> None:
        method = self.method
        s = sum(row[j] for j in picture)
        if s == 0 or s < method.summ or sum(row[j] for j in picture & sinks) / s > method.rho:
            self.left += 1
            return
        self.edited += 1
        omega = (1 - method.p) * sum(row[j] for j in sinks)
        total = sum(row[j] for j in picture - sinks)
        before = row.copy()
        for j in sinks:
            row[j] = method.p * before[j]
        for j in picture - sinks:
            row[j] += omega * before[j] / total


@pytest.mark.parametrize("dimensions", ["auto", "3 17"])
def test_logits_equal_the_edited_full_matrix(family: mmattn.VLM, pictures: list[Any], dimensions: str) -> None:
    if is_t5(family) and dimensions == "auto":
        pytest.skip("the tiny T5's states are so alike that each token would be a sink")
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    numbers = () if dimensions == "auto" else (3, 17)
    method = replace(FITTING, dimensions=dimensions, tau=1.0 if numbers else 1.7)
    oracle = _Oracle(method, numbers)
    with full_matrix(family, inputs["input_ids"], oracle):
        expected = prompt_logits(family, inputs)
    assert oracle.edited
    assert oracle.left
    plain = prompt_logits(family, inputs)
    with mmattn.edit(family.model, method):
        got = prompt_logits(family, inputs)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 1e-3


def test_plain_generate_and_the_engine_agree(family: mmattn.VLM, pictures: list[Any]) -> None:
    """Sinks stay from the prefill to the end, in either."""
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
    with mmattn.edit(family.model, FITTING):
        ids = new_tokens(family, inputs, **settings)
        again = new_tokens(family, inputs, **settings)  # nothing is left of the first
        one_beam = new_tokens(family, inputs, num_beams=2, **settings)
    assert again == ids
    assert one_beam
    got = family.generate(pictures[:3], PROMPTS[:3], method=FITTING, max_new_tokens=6, stop_token_ids=[1])
    for one, row in zip(got, ids, strict=True):
        assert list(one.token_ids) == row[: len(one.token_ids)]


def test_sinks_are_each_samples_own(family: mmattn.VLM, pictures: list[Any]) -> None:
    """The public code keeps the first sample's sinks for all that follow."""
    settings: dict[str, Any] = {"method": FITTING, "max_new_tokens": 5, "stop_token_ids": []}
    forth = family.generate(pictures[:2], PROMPTS[:2], **settings)
    back = family.generate(pictures[:2][::-1], PROMPTS[:2][::-1], **settings)
    assert forth == back[::-1]
    assert forth == [family.generate([i], [p], **settings)[0] for i, p in zip(pictures, PROMPTS[:2], strict=False)]


def test_edited_rows_sum_to_one_and_keep_their_order(vlm: mmattn.VLM) -> None:
    torch.manual_seed(3)
    weights = torch.rand(2, 4, 5, 12).softmax(-1)
    image = torch.zeros(2, 1, 1, 12, dtype=torch.bool)
    image[..., 2:8] = True
    sinks = torch.zeros(2, 12, dtype=torch.bool)
    sinks[0, [0, 3]] = True
    edit = FITTING.edits()[0]
    assert isinstance(edit, Redistribution)
    site = mmattn.attention.Site(0, 3, image, memory={"sinks": sinks})
    new = edit.weights(weights, site)
    torch.testing.assert_close(new.sum(-1), torch.ones(2, 4, 5))
    assert torch.equal(new[1], weights[1])  # no sinks
    assert not torch.equal(new[0], weights[0])
    rest = [2, 4, 5, 6, 7]
    assert torch.equal(new[0, ..., rest].argsort(-1), weights[0, ..., rest].argsort(-1))


def test_settings(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    assert VAR(p=1).edits() == ()
    assert PRESETS["llama-2-7b"] == (1415, 2533)
    method = mmattn.decoding.resolve("var(dimensions='llama-2-13b', p=0.5)")
    assert method == VAR(dimensions="llama-2-13b", p=0.5)
    with pytest.raises(MmattnError, match="4743 is not among the 48"):
        vlm.generate(pictures[0], "q", method=VAR(dimensions="llama-2-13b", start=0), max_new_tokens=1)
    for wrong in ("dimensions=3", "dimensions='no'", "p='a'"):
        with pytest.raises(MmattnError):
            mmattn.decoding.resolve(f"var({wrong})")


@pytest.mark.parametrize("shares", [(0.3, 0.5), (1e-40, 0.7), (1e-45, 0.99), (0.0, 0.5)])
@pytest.mark.parametrize("rho", [0.5, 1.0])
def test_a_row_that_hardly_sees_the_picture_stays_a_row(shares: tuple[float, float], rho: float) -> None:
    """Keys: a text sink, a picture's sink, the rest of the picture, text; with nothing to move to, nothing moves."""
    rest, sink = shares
    weights = torch.tensor([sink, rest, rest, 1 - sink - 2 * rest])[None, None, None]
    image = torch.tensor([False, True, True, False])[None, None, None]
    sinks = torch.tensor([[True, rho == 1, False, False]])
    edit = Redistribution(20, rho, 0, 0.6, (), 0, 0)
    found = edit.weights(weights, Site(0, 3, image, memory={"sinks": sinks}, known=4))
    assert found.isfinite().all()
    assert found.sum().item() == pytest.approx(1, abs=1e-6)
    assert found[..., 0].item() == pytest.approx(0.6 * sink if rest else sink)
