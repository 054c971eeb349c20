"""Attention kept while generating equals attention read with teacher forcing, and a cache that grows in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache

import mmattn
from mmattn.adapters import SharedCache
from mmattn.decoding import VCD, Boost, Capture
from mmattn.decoding.recorder import Recorder
from mmattn.errors import MmattnError
from tests.tiny import FAMILIES

PROMPTS = ["what?", "a longer question this time", "x"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.1))


@pytest.mark.parametrize("method", ["greedy", "vcd", "boost"])
def test_rows_equal_those_of_teacher_forcing(family: mmattn.VLM, pictures: list[Any], method: str) -> None:
    """The row that decided token i is the one of the token before it; branches and padding change nothing."""
    images = [pictures[0], pictures[1:3][: family.adapter.max_images], pictures[3]]
    answers = family.generate(images, PROMPTS, method=method, max_new_tokens=5, stop_token_ids=[], capture=Capture())
    for image, prompt, answer in zip(images, PROMPTS, answers, strict=True):
        read = answer.attention
        assert read is not None
        given: dict[str, Any] = {"method": method}
        first = family.attend(image, prompt, rows="last", **given)
        rest = family.attend(image, prompt, answer, **given)
        expected = torch.cat([first.weights, rest.weights[:, :, :-1]], dim=2)
        torch.testing.assert_close(read.weights, expected, atol=2e-6, rtol=1e-4)
        assert read.positions == first.positions + rest.positions[:-1]
        assert read.tokens == first.tokens + rest.tokens[:-1]
        assert read.produced == rest.tokens
        assert read.heatmap(layers=1, heads=0, rows=4).shape == read.layout.images[0].size[::-1]


def test_capture_changes_no_answer(family: mmattn.VLM, pictures: list[Any]) -> None:
    plain = family.generate(pictures, ["q"] * 5, max_new_tokens=6)
    kept = family.generate(pictures, ["q"] * 5, max_new_tokens=6, capture=Capture(), batch_size=2)
    assert kept == plain
    assert all(one.attention is None for one in plain)
    for one in kept:
        assert one.attention is not None
        assert len(one.attention.produced) == one.attention.weights.shape[2] == len(one.token_ids)


def test_chosen_layers_heads_and_tokens(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 5, "stop_token_ids": []}
    full = vlm.generate(pictures[0], "q", capture=Capture(), **settings)[0].attention
    some = vlm.generate(
        pictures[0], "q", capture=Capture(layers=[-1, 0], heads=[3, 1], tokens=[0, 2, 9], device=None), **settings
    )[0].attention
    assert full is not None
    assert some is not None
    assert torch.equal(some.weights, full.weights[[2, 0]][:, [3, 1]][:, :, [0, 2]])
    assert some.layers == (2, 0)
    assert some.produced == (full.produced[0], full.produced[2])


def test_text_alone_has_nothing_to_show(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 3, "stop_token_ids": [], "capture": Capture()}
    for images, prompts in (([None, pictures[0]], ["a", "b"]), ([None], ["a"])):
        read = vlm.generate(images, prompts, **settings)[0].attention
        assert read is not None
        assert read.weights.shape[-1] == 0
        with pytest.raises(MmattnError, match="no picture"):
            read.heatmap()


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        (Capture(layers=[3]), r"A layer of capture must be a whole number in -3\.\.2, not 3"),
        (Capture(heads=[4]), "A head of capture"),
        (Capture(heads=[]), "No head is chosen"),
        (Capture(tokens=[-1]), "A token of capture"),
        (Capture(tokens=[]), "No token is chosen"),
    ],
)
def test_bad_captures(vlm: mmattn.VLM, pictures: list[Any], capture: Capture, message: str) -> None:
    with pytest.raises(MmattnError, match=message):
        vlm.generate(pictures[0], "q", capture=capture)


def test_the_cache_grows_as_a_concatenating_one() -> None:
    ours, theirs = SharedCache(2), DynamicCache()
    for length in (5, 1, 1, 70, 1, 100):
        for layer in range(2):
            keys, values = torch.randn(3, 2, length, 4), torch.randn(3, 2, length, 4)
            for one, other in zip(ours.update(keys, values, layer), theirs.update(keys, values, layer), strict=True):
                assert torch.equal(one, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert torch.equal(ours.keys, torch.stack([layer.keys for layer in theirs.layers]))


def test_a_sharded_model_keeps_a_cache_per_layer(vlm: mmattn.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(vlm.adapter.new_cache(), SharedCache)
    monkeypatch.setattr(vlm.model, "hf_device_map", {"model.vision_tower": 0, "lm_head": 1}, raising=False)
    assert isinstance(vlm.adapter.new_cache(), DynamicCache)


def test_methods_may_be_combined_with_capture(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    answer = vlm.generate(pictures[0], "q", method=VCD(), max_new_tokens=2, capture=Capture(tokens=[0]))[0]
    boosted = vlm.generate(pictures[0], "q", method=Boost(3), max_new_tokens=2, capture=Capture(tokens=[0]))[0]
    assert answer.attention is not None
    assert boosted.attention is not None
    assert bool((boosted.attention.weights.sum(-1) > answer.attention.weights.sum(-1))[0].all())


def test_room_is_made_as_answers_go_on(vlm: mmattn.VLM, pictures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 9, "stop_token_ids": [], "capture": Capture(tokens=[0, 3, 3, 8, 5])}
    expected = vlm.generate(pictures[:2], ["q", "what is this?"], **settings)
    for name, steps in (("FIRST", 1), ("MOST", 2)):
        monkeypatch.setattr(f"mmattn.decoding.recorder.{name}", steps)
    found = vlm.generate(pictures[:2], ["q", "what is this?"], **settings)
    for one, other in zip(found, expected, strict=True):
        assert one.attention is not None
        assert other.attention is not None
        assert torch.equal(one.attention.weights, other.attention.weights)
        weights = one.attention.weights
        assert weights.shape[2] == 4
        # Each sample's rows are its own, and nothing else.
        assert weights.is_contiguous()
        assert weights.untyped_storage().nbytes() == weights.nbytes


def test_a_step_begun_too_many_is_not_kept(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    """A captured step runs ahead of the host: the one after the last is already under way when that is known."""
    prepared = vlm.adapter.prepare([mmattn.adapters.Sample((pictures[0],), "q")])
    batch = vlm.adapter.embed(prepared, [vlm.adapter.encode(prepared[0].pixels)])
    recorder = Recorder(Capture(), vlm.adapter, batch, branches=1, steps=3)
    rows = torch.rand(5, 1, 3, 4, recorder.columns.shape[1])
    for step, one in enumerate(rows):
        recorder.take(step, one[:, :2])
        recorder.take(step, one[:, 2:], 2)
    assert recorder.taken == [0, 1, 2]
    assert torch.equal(recorder.rows_of(0, 3)(), rows[:3, 0].permute(1, 2, 0, 3))
