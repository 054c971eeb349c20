"""Methods that steer attention to the user's words or the picture, against their equations over the full matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mmattn
from mmattn.adapters import Sample
from mmattn.decoding import PASTA, Boost, InstABoost, SplitSoftmax, SpotLight
from mmattn.errors import MmattnError
from tests.oracle import Whole, full_matrix, prompt_logits
from tests.stock import inputs_of, is_t5
from tests.test_families import PROMPTS
from tests.tiny import FAMILIES


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.1))


# The equations: scores (H, S) of one row, marked (S,) and prompt (S,) bool, layer -> weights (H, S).


def instaboost(method: InstABoost, scores: torch.Tensor, marked: torch.Tensor, layer: int) -> torch.Tensor:
    weights = scores.softmax(-1)
    weights[:, marked] *= method.strength
    return weights / weights.sum(-1, keepdim=True)


def pasta(method: PASTA, scores: torch.Tensor, marked: torch.Tensor, layer: int) -> torch.Tensor:
    weights = scores.softmax(-1)
    for head in range(len(weights)):
        if method.heads == "all" or f"{layer}:{head}" in method.heads.split():
            weights[head, ~marked] *= method.alpha
            weights[head] /= weights[head].sum()
    return weights


def spotlight(method: SpotLight, scores: torch.Tensor, marked: torch.Tensor, layer: int) -> torch.Tensor:
    weights = scores.softmax(-1)
    for row in weights:
        psi = row[marked].sum().item()
        if psi < method.target:
            level = method.target / (method.target + 1 - psi)
            row[marked] *= level / psi
            row[~marked] *= (1 - level) / (1 - psi)
    return weights


def split(method: SplitSoftmax, scores: torch.Tensor, marked: torch.Tensor, layer: int) -> torch.Tensor:
    weights = scores.softmax(-1)
    for row in weights:
        pi = row[marked].sum().item()
        row[marked] *= pi**method.power / pi
        row[~marked] *= (1 - pi**method.power) / (1 - pi)
    return weights


CASES: list[tuple[Any, Callable[..., torch.Tensor]]] = [
    (InstABoost(7.0), instaboost),
    (InstABoost(7.0, "image"), instaboost),
    (PASTA(0.05, heads="0:1 0:3 2:0"), pasta),
    (PASTA(0.2, "image"), pasta),
    (SpotLight(0.9), spotlight),
    (SpotLight(0.6, "image"), spotlight),
    (SplitSoftmax(0.2), split),
    (SplitSoftmax(0.4, "image"), split),
]


@pytest.mark.parametrize(("method", "equation"), CASES, ids=[f"{one.name}-{one.on}" for one, _ in CASES])
def test_scores_follow_the_equation(
    family: mmattn.VLM, pictures: list[Any], method: Any, equation: Callable[..., torch.Tensor]
) -> None:
    prepared = family.adapter.prepare([Sample((pictures[1],), PROMPTS[1])])[0]
    inputs = inputs_of(family, [[pictures[1]]], PROMPTS[1:2])
    words = torch.zeros_like(inputs["input_ids"][0], dtype=torch.bool)
    words[list(prepared.layout.instruction)] = True
    said = family.processor.tokenizer.decode(inputs["input_ids"][0][words])
    assert said == PROMPTS[1]

    def change(whole: Whole) -> torch.Tensor:
        weights = whole.scores.softmax(-1).nan_to_num(0)
        marked = words if method.on == "instruction" else whole.image[0]
        for row in range(weights.shape[2]):
            scores = whole.scores[0, :, row]
            if whole.rows[0, row] and torch.isfinite(scores[:, marked]).any():
                weights[0, :, row] = equation(method, scores, marked, whole.layer)
        return weights

    with full_matrix(family, inputs["input_ids"], change):
        expected = prompt_logits(family, inputs)[0]
    plain = prompt_logits(family, inputs)[0]
    request = family.adapter
    with torch.inference_mode(), request.session(edits=method.edits()) as session:
        batch = request.embed([prepared], [request.encode(prepared.pixels)])
        session.columns = batch.columns
        got = request.logits(request.decode(batch)[0, -1])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 1e-3


def test_what_is_the_same(family: mmattn.VLM, pictures: list[Any]) -> None:
    """Boost of the picture; weakening all else in a prompt of which everything is rest or marked."""
    settings: dict[str, Any] = {"max_new_tokens": 5, "stop_token_ids": []}
    boost = family.generate(pictures[:3], PROMPTS[:3], method=Boost(4), **settings)
    assert family.generate(pictures[:3], PROMPTS[:3], method=InstABoost(4, "image"), **settings) == boost
    first = {**settings, "max_new_tokens": 1}
    weak = family.generate(pictures[:3], PROMPTS[:3], method=PASTA(0.25, "image"), **first)
    assert weak == family.generate(pictures[:3], PROMPTS[:3], method=Boost(4), **first)


def test_generated_tokens_are_no_part_of_the_prompt(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    edit = PASTA(0.5).edits()[0]
    image = torch.zeros(1, 1, 1, 5, dtype=torch.bool)
    said = torch.tensor([False, True, False, False, False])[None, None, None]
    prefill = mmattn.attention.Site(0, 3, image, said, known=3)
    edit.scores(torch.zeros(1, 1, 1, 5), prefill)
    new = edit.scores(torch.zeros(1, 1, 1, 5), mmattn.attention.Site(0, 3, image, said, memory=prefill.memory))
    assert (new != 0).flatten().tolist() == [True, False, True, False, False]


def test_plain_transformers_knows_pictures_only(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])
    assert not is_t5(vlm)
    with mmattn.edit(vlm.model, SpotLight(0.9, "image")):
        vlm.model.generate(**inputs, max_new_tokens=3)
    with mmattn.edit(vlm.model, SpotLight()), pytest.raises(MmattnError, match="where the instruction is"):
        vlm.model.generate(**inputs, max_new_tokens=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spotlight(on='words')", "cannot steer to 'words'"),
        ("pasta(heads='3')", "does not know the heads"),
        ("pasta(heads='9:0')", "a layer beyond the 3"),
        ("pasta(heads='0:7')", "a head beyond the 4"),
        ("spotlight(target=2)", "in 0..1"),
        ("split-softmax(power=2)", "in 0..1"),
        ("instaboost(strength=0)", "at least"),
        ("pasta(alpha=0)", "at least"),
    ],
)
def test_wrong_settings_are_told(vlm: mmattn.VLM, pictures: list[Any], text: str, words: str) -> None:
    with pytest.raises(MmattnError, match=words):
        vlm.generate(pictures[0], "q", method=text, max_new_tokens=1)
