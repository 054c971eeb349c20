"""PAINT: its groups from the vision tower's own maps, and its equation over the full matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import SiglipVisionConfig, SiglipVisionModel

import mmattn
from mmattn.adapters import Sample
from mmattn.adapters.tower import class_rows
from mmattn.decoding import PAINT
from mmattn.decoding.paint import AmplifyGroups
from mmattn.errors import MmattnError
from tests.oracle import Whole, full_matrix
from tests.stock import is_t5
from tests.test_contrasts import Stock, cut, log_softmax
from tests.test_families import PROMPTS
from tests.tiny import FAMILIES

Array = NDArray[np.float64]
WITHOUT = [name for name in FAMILIES if name.startswith("qwen") or name == "llava-onevision"]


@pytest.fixture(scope="module", params=[name for name in FAMILIES if name not in WITHOUT])
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    vlm = mmattn.wrap(*FAMILIES[request.param](spread=0.12))
    tower = vlm.model.vision_model if vlm.adapter.mixed else vlm.model.model.vision_tower
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.adapter.image_token_id] = 0
        for name, weight in tower.named_parameters():
            if "self_attn" in name and name.endswith("weight"):
                weight.mul_(8)  # else every patch gets the same attention
    return vlm


def gazes(vlm: mmattn.VLM, picture: Any, prompt: str) -> Array:
    """The class token's attention in the tower's layers, summed over heads, on each image token: (layers, N)."""
    prepared = vlm.adapter.prepare([Sample((picture,), prompt)])[0]
    values = prepared.pixels[0].values
    tower = vlm.model.vision_model if vlm.adapter.mixed else vlm.model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        out = tower(values if values.ndim == 4 else values[None], output_attentions=True)
    tower.set_attn_implementation("sdpa")
    maps = torch.stack(out.attentions)[:, :, :, 0, 1:].sum(2).double().numpy()  # (layers, tiles, patches)
    if vlm.adapter.mixed:
        shares: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            vlm.adapter.encode(prepared.pixels, shares)
        return np.asarray(maps[:, 0] @ shares[prepared.pixels[0].key].double().numpy().T)
    if values.ndim == 3:
        return np.asarray(maps[:, 0])
    base, tiles = prepared.layout.images[0].views
    side = base.rows
    high, wide = (vlm.adapter._resolution(prepared.pixels[0].size)[axis] // (14 * side) for axis in (0, 1))  # type: ignore[attr-defined]
    found = np.full((len(maps), len(prepared.layout.image_tokens)), np.nan)
    found[:, : side * side] = maps[:, 0]
    top, left = (high * side - tiles.rows) // 2, (wide * side - tiles.columns) // 2
    for row in range(tiles.rows):
        for column in range(tiles.columns):
            y, x = row + top, column + left
            tile = 1 + y // side * wide + x // side
            at = side * side + row * (tiles.columns + 1) + column
            found[:, at] = maps[:, tile, y % side * side + x % side]
    return found


def groups(looks: Array, share: float) -> tuple[set[int], set[int]]:
    early, late = looks[0], looks[-2]
    known = [one for one in range(len(early)) if np.isfinite(early[one])]
    low, high = np.quantile(late[known], [0.25, 0.75])
    summary = {one for one in known if late[one] > high + 1.5 * (high - low)}
    local = set(sorted(known, key=lambda one: -early[one])[: round(share * len(known))])
    return local - summary, summary


def equation(method: PAINT, stock: Stock, answer: list[int], marked: tuple[set[int], set[int]]) -> Array:
    inputs = stock.inputs()
    first = 0 if is_t5(stock.vlm) else inputs["input_ids"].shape[1] - 1

    def change(whole: Whole) -> torch.Tensor:
        scores = whole.scores[0].double().numpy().copy()
        places = np.flatnonzero(whole.image[0].numpy())
        for row in range(first, scores.shape[1]) if method.start <= whole.layer < method.end else ():
            mass = [weights[places].sum() for weights in whole.scores[0, :, row].softmax(-1).double().numpy()]
            for head in range(len(scores)):
                g = 1 + method.modulation * (mass[head] / np.mean(mass) - 1)
                for chosen, gain in zip(marked, (method.local, method.summary), strict=True):
                    for one in chosen:
                        scores[head, row, places[one]] += g * gain * abs(scores[head, row, places[one]])
        return torch.tensor(scores[None]).float().softmax(-1).nan_to_num(0)

    ids = torch.nn.functional.pad(inputs["input_ids"], (0, 0 if is_t5(stock.vlm) else len(answer)))
    with full_matrix(stock.vlm, ids, change):
        z = stock(answer)
    if method.gamma == 1:
        return z
    s, u = log_softmax(z), log_softmax(stock(answer, stock.inputs(blind=True)))
    return cut(method.gamma * (s - u) + u, z, method.beta)


CASES = [
    PAINT(local=1.5, summary=4.0, gamma=2.0, beta=0.02, share=0.4, start=1, end=3),
    PAINT(local=3.0, summary=0.0, gamma=1.0, modulation=1.0, start=0),
    PAINT(local=0.5, summary=3.0, gamma=1.5, beta=0.0, modulation=0.5, start=0),
]


def test_the_tower_is_read_as_eager_attention_reads_it(family: mmattn.VLM, pictures: list[Any]) -> None:
    prepared = family.adapter.prepare([Sample((one,), PROMPTS[0]) for one in pictures[:4]])
    with torch.no_grad():
        got = family.adapter.class_attention([one.pixels[0] for one in prepared], (0, 1, -1))
    for picture, looks in zip(pictures, got, strict=False):
        expected = gazes(family, picture, PROMPTS[0])[[0, 1, 1]]
        np.testing.assert_allclose(looks.double().numpy(), expected, atol=1e-5)
    assert AmplifyGroups.tower == (0, -2)


def test_there_are_both_groups(family: mmattn.VLM, pictures: list[Any]) -> None:
    found = [groups(gazes(family, one, PROMPTS[0]), 0.4) for one in pictures]
    assert all(local for local, _ in found)
    assert any(summary for _, summary in found) or family.adapter.mixed


@pytest.mark.parametrize("method", CASES, ids=["groups", "heads", "both"])
def test_tokens_follow_the_equation(family: mmattn.VLM, pictures: list[Any], method: PAINT) -> None:
    shown, words = pictures[1:3], PROMPTS[1:3]
    got = family.generate(shown, words, method=method, max_new_tokens=2, stop_token_ids=[])
    for one, picture, prompt in zip(got, shown, words, strict=True):
        stock = Stock(family, picture, prompt)
        marked = groups(gazes(family, picture, prompt), method.share)
        for step, token in enumerate(one.token_ids):
            scores = equation(method, stock, list(one.token_ids[:step]), marked)
            assert scores[token] >= scores.max() - 1e-4
            assert np.isfinite(scores[token])


def test_the_cases_bite(family: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "stop_token_ids": []}
    plain = family.generate(pictures, PROMPTS, **settings)
    for method in CASES:
        assert family.generate(pictures, PROMPTS, method=method, **settings) != plain, method.label


def test_several_pictures_have_groups_of_their_own(pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*FAMILIES["llava"]())
    method = PAINT(local=3, summary=3, gamma=1, start=0)
    settings: dict[str, Any] = {"method": method, "max_new_tokens": 4, "stop_token_ids": []}
    mixed = vlm.generate([[pictures[0], pictures[1]], pictures[2], None], PROMPTS[:3], **settings)
    alone = [
        vlm.generate([one], [words], **settings)[0]
        for one, words in zip([[pictures[0], pictures[1]], pictures[2], None], PROMPTS[:3], strict=True)
    ]
    assert mixed == alone
    edit = method.edits()[0]
    looks = torch.tensor([[4.0, 1, 2, 3, torch.nan, 0, 0, 0, 0], [1.0, 1, 1, 1, torch.nan, 9, 1, 1, 2]])
    marked = edit.marks(looks)
    assert marked["local"].nonzero().flatten().tolist() == [0, 3]
    assert marked["summary"].nonzero().flatten().tolist() == [5, 8]


def test_other_edits_and_rules_join(family: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 4, "stop_token_ids": []}
    text = "vhr(alpha=3)+paint(local=4, summary=2, gamma=1, start=0)+sid(alpha=4, beta=0.01, start=1)"
    both = family.generate(pictures[:3], PROMPTS[:3], method=text, **settings)
    assert both == [family.generate([i], [p], method=text, **settings)[0] for i, p in zip(pictures, PROMPTS[:3])]  # noqa: B905
    assert both != family.generate(pictures[:3], PROMPTS[:3], method="vhr(alpha=3)", **settings)


@pytest.mark.parametrize("name", WITHOUT)
def test_towers_without_class_token_are_refused(pictures: list[Any], name: str) -> None:
    tower = SiglipVisionModel(SiglipVisionConfig(hidden_size=32, num_attention_heads=4, image_size=56, patch_size=14))
    with pytest.raises(MmattnError, match="no class token"):
        class_rows(tower, 1, (0,), lambda: None)
    vlm = mmattn.wrap(*FAMILIES[name]())
    with pytest.raises(MmattnError, match="no class token"):
        vlm.generate(pictures[0], "what?", method="paint", max_new_tokens=1)


def test_a_single_forward_is_refused(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    with pytest.raises(MmattnError, match="by the vision tower"):
        vlm.attend(pictures[0], "what?", method="paint(gamma=1, start=0)")
