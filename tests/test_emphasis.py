"""Marked words and regions, sample by sample: exactly they get more attention, in any batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mmattn
from mmattn.adapters import Sample
from mmattn.decoding import emphasise, resolve
from mmattn.decoding.emphasis import STEERERS, joined, towards_marks
from mmattn.decoding.fast.rewriting import Rewriting
from mmattn.errors import MmattnError
from tests import test_steering as steering
from tests.oracle import Whole, full_matrix, prompt_logits
from tests.stock import inputs_of
from tests.test_prefix import _tokens
from tests.tiny import FAMILIES

SETTINGS: dict[str, Any] = {"max_new_tokens": 5, "stop_token_ids": []}
PROMPT = "what is on the left of it?"
STRONG = {"instaboost": 40.0, "pasta": 40.0, "spotlight": 20.0, "split-softmax": 8.0}
# Has its own test, since it moves nothing where there are no sinks.
ACT_SETTINGS = "act(beta=0, threshold=0.03, start=0, spared=0)"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.12))


def test_every_steering_method_has_its_strength() -> None:
    assert {*STRONG, "act"} == STEERERS.keys()
    for by, make in STEERERS.items():
        assert make(1.0).edits() == ()
        assert make(3.0).name == by
        assert emphasise("x", 3.0, by).method == towards_marks(make(3.0))


@pytest.mark.parametrize("by", STRONG)
def test_a_marked_region_gets_more_attention_and_nothing_else_does(
    family: mmattn.VLM, pictures: list[Any], by: str
) -> None:
    if family.adapter.mixed:
        with pytest.raises(MmattnError, match="mixture of places"):
            family.attend(pictures[1], PROMPT, emphasise=(10, 5, 60, 30))
        return
    picture, box = pictures[1], (35, 8, 88, 44)
    plain = family.attend(picture, PROMPT, layers=0)
    read = family.attend(picture, PROMPT, layers=0, emphasise=emphasise(box, STRONG[by], by))
    shown = plain.layout.images[0]
    inside = set()
    for view in shown.views:
        for row in range(view.rows):
            for column in range(view.columns):
                x, y = view.to_pixels.point(column + 0.5, row + 0.5)
                if box[0] <= x < box[2] and box[1] <= y < box[3]:
                    inside.add(view.start + row * (view.columns + view.gap) + column)
    assert 0 < len(inside) < 0.6 * len(shown.tokens)
    marked = torch.tensor([token in inside for token in shown.tokens])
    factor = read.weights[0, :, 0] / plain.weights[0, :, 0]
    for head in factor:
        # All of them in the same proportion, the rest less.
        torch.testing.assert_close(head[marked], head[marked][:1].expand(int(marked.sum())), rtol=1e-4, atol=1e-5)
        assert (head[marked] > 1.0001).all()
        assert (head[~marked] < 0.9999).all()


EQUATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "instaboost": steering.instaboost,
    "pasta": steering.pasta,
    "spotlight": steering.spotlight,
    "split-softmax": steering.split,
}


@pytest.mark.parametrize("by", STRONG)
def test_marked_words_follow_the_equation(family: mmattn.VLM, pictures: list[Any], by: str) -> None:
    sample = Sample((pictures[1],), PROMPT, marks=(mmattn.Mark("LEFT"), mmattn.Mark("what")))
    inputs = inputs_of(family, [[pictures[1]]], [PROMPT])
    ids = inputs["input_ids"][0]
    words = torch.zeros_like(ids, dtype=torch.bool)
    for word in ("left", "what"):  # one token a byte
        piece = family.processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        for start in range(len(ids) - len(piece)):
            if ids[start : start + len(piece)].tolist() == piece:
                words[start : start + len(piece)] = True
    assert words.sum() == 8
    method: Any = emphasise("left", 6.0, by).method

    def change(whole: Whole) -> torch.Tensor:
        weights = whole.scores.softmax(-1).nan_to_num(0)
        for row in range(weights.shape[2]):
            scores = whole.scores[0, :, row]
            # Rows before the words see none of them.
            if whole.rows[0, row] and (torch.isfinite(scores[:, words]).any() or by == "pasta"):
                weights[0, :, row] = EQUATIONS[by](method, scores, words, whole.layer)
        return weights

    with full_matrix(family, inputs["input_ids"], change):
        expected = prompt_logits(family, inputs)[0]
    adapter = family.adapter
    prepared = adapter.prepare([sample])[0]
    with torch.inference_mode(), adapter.session(edits=method.edits()) as session:
        batch = adapter.embed([prepared], [adapter.encode(prepared.pixels)])
        session.columns = batch.columns
        got = adapter.logits(adapter.decode(batch)[0, -1])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert (expected - prompt_logits(family, inputs)[0]).abs().max() > 1e-3


def test_act_gives_what_sinks_lose_to_the_marked_alone(family: mmattn.VLM, pictures: list[Any]) -> None:
    mark: Any = mmattn.Mark(image=0) if family.adapter.mixed else (35, 8, 88, 44)
    plain = family.attend(pictures[1], PROMPT, layers=0)
    read = family.attend(pictures[1], PROMPT, layers=0, method=ACT_SETTINGS, emphasise=mark)
    sample = Sample((pictures[1],), PROMPT, marks=(mmattn.Mark.of(mark),))
    marked = family.adapter.prepare([sample])[0].layout.marked
    inside = torch.tensor([token in marked for token in plain.layout.image_tokens])
    more = read.weights[0, :, 0] > plain.weights[0, :, 0] * 1.0001
    less = read.weights[0, :, 0] < plain.weights[0, :, 0] * 0.9999
    assert more.any()
    assert not more[:, ~inside].any()
    assert ((read.weights[0, :, 0] == 0) | ~less).all()  # beta is 0
    images, words, marks = _mixed(family, pictures)
    together = family.generate(images, words, method=ACT_SETTINGS, emphasise=marks, **SETTINGS)
    assert together == [
        family.generate([image], [text], method=ACT_SETTINGS, emphasise=[one], **SETTINGS)[0]
        for image, text, one in zip(images, words, marks, strict=True)
    ]
    assert together[-1] == family.generate(images, words, **SETTINGS)[-1]


def _mixed(vlm: mmattn.VLM, pictures: list[Any]) -> tuple[list[Any], list[str], list[Any]]:
    """Samples that mark words, a region, a picture of several, and nothing."""
    several = [pictures[3], pictures[1]][: vlm.adapter.max_images]
    images = [pictures[0], several, pictures[1], pictures[2], pictures[2]]
    words = [PROMPT, "is it?", "and where are the cats?", PROMPT, "no"]
    box: Any = (2, 40, 40, 90) if not vlm.adapter.mixed else mmattn.Mark(image=0)
    last = mmattn.Mark(image=len(several) - 1)
    return images, words, ["left", last, ["cats", "where"], [box, "what"], None]


@pytest.mark.parametrize("by", ["pasta", "spotlight"])  # which remembers the prompt, and which does not
def test_a_batch_is_its_samples_whatever_they_mark(family: mmattn.VLM, pictures: list[Any], by: str) -> None:
    images, words, marks = _mixed(family, pictures)
    given = emphasise(marks, STRONG[by], by)
    together = family.generate(images, words, emphasise=given, **SETTINGS)
    alone = [
        family.generate([image], [text], emphasise=emphasise([mark], STRONG[by], by), **SETTINGS)[0]
        for image, text, mark in zip(images, words, marks, strict=True)
    ]
    assert together == alone
    plain = family.generate(images, words, **SETTINGS)
    assert together[-1] == plain[-1]
    assert together != plain
    assert family.generate(images, words, emphasise=emphasise(marks, 1, by), **SETTINGS) == plain


@pytest.mark.parametrize("rule", ["vcd(alpha=2, beta=0)", "icd(alpha=2)", "m3id(rate=0.9)", "iava(alpha=4)"])
def test_emphasis_joins_a_rule_and_each_branch_has_what_is_left_of_it(
    vlm: mmattn.VLM, pictures: list[Any], rule: str
) -> None:
    images, words, marks = _mixed(vlm, pictures)
    settings: dict[str, Any] = {"method": rule, **SETTINGS}
    given = emphasise(marks, 30)
    together = vlm.generate(images, words, emphasise=given, **settings)
    alone = [
        vlm.generate([image], [text], emphasise=emphasise([mark], 30), **settings)[0]
        for image, text, mark in zip(images, words, marks, strict=True)
    ]
    assert together == alone
    assert together != vlm.generate(images, words, **settings)


def test_prompts_that_mark_different_things_share_what_is_the_same(
    family: mmattn.VLM, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmattn.decoding.prefix.SAVING", -9)
    words = ["what is left of it, a dog?", "what is left of it, a cat?", "what is left of it, who?"]
    box: Any = mmattn.Mark(image=0) if family.adapter.mixed else (2, 3, 40, 41)
    for marks in (["dog", "cat", "who"], ["left", "is", "of it"], [box, None, box]):
        given: dict[str, Any] = {"emphasise": emphasise(marks, 30.0, "pasta"), **SETTINGS}
        alone, _ = _tokens(family, images=pictures[1], prompts=words, share=False, **given)
        together, _ = _tokens(family, images=pictures[1], prompts=words, **given)
        assert together == alone
        assert alone != family.generate(pictures[1], words, **SETTINGS)


def test_different_words_do_not_hinder_sharing(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    words = ["what is left of it, a dog?", "what is left of it, a cat?", "what is left of it, a cow?"]
    _, all_of = _tokens(vlm, images=pictures[1], prompts=words, emphasise=["dog", "cat", "cow"], share=False)
    _, shared = _tokens(vlm, images=pictures[1], prompts=words, emphasise=["dog", "cat", "cow"])
    assert shared < 0.6 * all_of


def test_a_captured_step_knows_the_marks(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    """Its buffers hold more rows and keys than the batch."""
    adapter, method = vlm.adapter, emphasise("x", 7.0).method
    samples = [Sample((pictures[0],), PROMPT, marks=(mmattn.Mark("left"),)), Sample((pictures[1],), "is it?")]
    prepared = adapter.prepare(samples)
    batch = adapter.embed(prepared, [adapter.encode(one.pixels) for one in prepared])
    rewriting = Rewriting(method.edits(), ("plain",), 3, 4, 4, 90, torch.device("cpu"))
    rewriting.start(batch.columns, {})
    scores = torch.randn(4, 4, 1, 90)
    weights = scores.softmax(-1)
    before = batch.mask.shape[1] - len(prepared[0].ids)
    weights[0, ..., [before + token for token in prepared[0].layout.marked]] *= 7
    assert len(prepared[0].layout.marked) == 4
    torch.testing.assert_close(rewriting.rewrite(1, scores), weights / weights.sum(-1, keepdim=True))


def test_what_method_and_emphasis_make_together() -> None:
    spot = resolve("spotlight(target=0.5)")
    assert joined(spot, "dog") == (resolve("spotlight(target=0.5, on='mark')"), "dog")
    assert joined(resolve("greedy"), "dog") == (resolve("instaboost(on='mark')"), "dog")
    assert joined(resolve("vcd"), "dog")[0].label == "instaboost(on='mark')+vcd"
    assert joined(resolve("vcd+pasta"), "dog")[0].label == "vcd+pasta(on='mark')"
    assert joined(spot, emphasise("dog", 3))[0].label == "instaboost(strength=3.0, on='mark')+spotlight(target=0.5)"
    assert joined(spot, None) == (spot, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"emphasise": "zebra"}, "'zebra' do not stand in the prompt"),
        ({"emphasise": "ASSISTANT"}, "do not stand in the prompt"),
        ({"emphasise": " "}, "are empty"),
        ({"emphasise": 3}, "3 cannot be marked"),
        ({"emphasise": (1, 2, 3)}, "cannot be marked|1 cannot"),
        ({"emphasise": (9, 2, 3, 4)}, "is empty"),
        ({"emphasise": (0, 0, 1, float("nan"))}, "finite number"),
        ({"emphasise": (900, 900, 950, 950)}, "outside of what the model sees"),
        ({"emphasise": (0, 0, 8, 8)}, "outside of what the model sees"),  # cropped
        ({"emphasise": mmattn.Mark(image=1)}, "no picture 1"),
        ({"prompts": ["q", "r"], "emphasise": ["q"]}, "1 entries to emphasise for 2 prompts"),
        ({"images": None, "emphasise": "what"}, "there is none"),
        ({"method": "instaboost(on='mark')"}, "there is none"),
    ],
)
def test_what_cannot_be_marked_is_told(vlm: mmattn.VLM, pictures: list[Any], given: dict[str, Any], words: str) -> None:
    with pytest.raises(MmattnError, match=words):
        vlm.generate(**{"images": pictures[1], "prompts": PROMPT, **given})


def test_wrong_fronts_are_told() -> None:
    with pytest.raises(MmattnError, match="strength of an emphasis"):
        emphasise("x", 0.5)
    with pytest.raises(MmattnError, match="Unknown method of emphasis"):
        emphasise("x", by="bold")
    for settings in ({}, {"words": "x", "image": 1}, {"words": "x", "box": (0, 0, 1, 1)}):
        with pytest.raises(MmattnError, match="either words or a picture"):
            mmattn.Mark(**settings)
