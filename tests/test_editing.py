"""Invariant 3, and `mmattn.edit`: an edit equals the same edit written into an eager forward over the full matrix."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

import mmattn
from mmattn.adapters.cache import cache_argument
from mmattn.attention import edit as edits
from mmattn.attention import rows
from mmattn.decoding import VCD, Boost, resolve
from mmattn.errors import MmattnError
from tests.stock import attention, implementation, inputs_of, is_t5, new_tokens
from tests.test_families import PROMPTS
from tests.tiny import FAMILIES

SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> mmattn.VLM:
    return mmattn.wrap(*FAMILIES[request.param](spread=0.1))


@contextmanager
def oracle(vlm: mmattn.VLM, ids: torch.Tensor, strength: float) -> Iterator[None]:
    """Eager attention over the full matrix: text after a picture attends `strength` times as much to image tokens."""
    image = ids == vlm.adapter.image_token_id
    text_after = ~image & (image.cumsum(1) > 0)
    layers = {id(layer) for layer in vlm.adapter.attention_layers}

    def full(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **given: Any) -> Any:
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        scores = query @ key.mT * scaling + given.get("position_bias", 0)
        if mask is not None:  # transformers hands out either kind
            mask = mask[..., : key.shape[2]]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights = scores.softmax(-1)
        if id(module) in layers:
            beams = len(query) // len(image)
            columns = torch.zeros(len(query), key.shape[2])
            columns[:, : image.shape[1]] = image.repeat_interleave(beams, 0).float()
            rows = text_after.repeat_interleave(beams, 0)
            if query.shape[2] == 1:
                rows = image.any(1, keepdim=True).repeat_interleave(beams, 0)
            factor = 1 + (strength - 1) * columns[:, None, None, :] * rows[:, None, :, None]
            weights = weights * factor
            weights = weights / weights.sum(-1, keepdim=True)
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("oracle", full)
    AttentionMaskInterface.register("oracle", eager_mask)
    with attention(vlm, "oracle"):
        yield


def _logits(vlm: mmattn.VLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return _real(vlm, inputs)


def _real(vlm: mmattn.VLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of all tokens but padding."""
    logits: torch.Tensor = vlm.model(**inputs).logits
    return logits.flatten(0, 1) if is_t5(vlm) else logits[inputs["attention_mask"].bool()]


def test_logits_equal_the_edited_full_matrix(
    family: mmattn.VLM, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    with oracle(family, inputs["input_ids"], 3.0):
        expected = _logits(family, inputs)
    plain = _logits(family, inputs)
    with mmattn.edit(family.model, Boost(3)):
        torch.testing.assert_close(_logits(family, inputs), expected, atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 1e-2
    monkeypatch.setattr(rows.Call, "portion", 1)  # row by row
    with mmattn.edit(family.model, "boost(strength=3)"):
        torch.testing.assert_close(_logits(family, inputs), expected, atol=1e-4, rtol=1e-4)


def test_an_edited_forward_has_gradients(family: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    weight = family.model.get_output_embeddings().weight
    before = next(one for one in family.adapter.attention_layers[0].parameters() if one.requires_grad)
    with oracle(family, inputs["input_ids"], 3.0):
        expected = torch.autograd.grad(_real(family, inputs).square().mean(), [weight, before])
    with mmattn.edit(family.model, Boost(3)):
        found = torch.autograd.grad(_real(family, inputs).square().mean(), [weight, before])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
        assert other.abs().max() > 0


def test_portions_do_not_grow_with_the_prompt() -> None:
    def portion(length: int) -> int:
        query, key = (torch.empty(1, heads, length, 128, dtype=torch.bfloat16, device="meta") for heads in (28, 4))
        return rows.Call(query, key, key, None, 1.0).portion

    assert portion(20_000) == portion(80_000) == 64  # half the width of a head
    assert portion(100) == rows.PORTION // (4 * 28 * 100)


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"num_beams": 2}, {"use_cache": False}])
def test_plain_generate_is_edited(family: mmattn.VLM, pictures: list[Any], cache: dict[str, Any]) -> None:
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    settings = {**SETTINGS, **cache}
    if not settings.get("use_cache", True):
        # Every step is then a full forward, and all tokens so far are rows of the prompt's call.
        settings["max_new_tokens"] = 1
    with oracle(family, inputs["input_ids"], 4.0):
        expected = family.model.generate(**inputs, **settings)
    with mmattn.edit(family.model, Boost(4)):
        edited = family.model.generate(**inputs, **settings)
    assert edited.tolist() == expected.tolist()
    if not cache:
        assert edited.tolist() != family.model.generate(**inputs, **settings).tolist()


def test_the_engine_edits_alike(family: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    with oracle(family, inputs["input_ids"], 4.0):
        ids = new_tokens(family, inputs, **SETTINGS)
    settings: dict[str, Any] = {"method": Boost(4), "max_new_tokens": 6, "stop_token_ids": [1]}
    got = family.generate(pictures[:3], PROMPTS[:3], **settings)
    for one, row in zip(got, ids, strict=True):
        assert list(one.token_ids) == row[: len(one.token_ids)]
    images = [pictures[0], None, [pictures[1], pictures[3]][: family.adapter.max_images]]
    together = family.generate(images, PROMPTS[:3], **settings)
    assert together == [family.generate([i], [p], **settings)[0] for i, p in zip(images, PROMPTS[:3], strict=True)]


def test_no_strength_is_the_plain_model(family: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(family, [[one] for one in pictures[:3]], PROMPTS[:3])
    plain = _logits(family, inputs)
    with mmattn.edit(family.model, Boost(1)):
        assert torch.equal(_logits(family, inputs), plain)
    with mmattn.edit(family.model, Boost(5)):
        assert not torch.equal(_logits(family, inputs), plain)
    assert torch.equal(_logits(family, inputs), plain)


def test_samples_without_a_picture_are_not_touched(family: mmattn.VLM, pictures: list[Any]) -> None:
    if family.adapter.mixed:
        pytest.skip("InstructBLIP's own forward wants a picture in every row")
    inputs = inputs_of(family, [[pictures[0]], []], ["what?", "no picture here at all, only quite a few words"])
    plain = family.model(**inputs).logits[1]
    with mmattn.edit(family.model, Boost(5)):
        assert torch.equal(family.model(**inputs).logits[1], plain)


def test_readers_see_edited_rows_and_they_sum_to_one(family: mmattn.VLM, pictures: list[Any]) -> None:
    plain = family.attend(pictures[0], "what?", "yes")
    read = family.attend(pictures[0], "what?", "yes", method=Boost(3))
    first = plain.weights[0]
    share = first.sum(-1, keepdim=True)
    torch.testing.assert_close(read.weights[0], 3 * first / (1 + 2 * share), atol=1e-6, rtol=1e-4)
    assert bool((read.weights.sum(-1) < 1).all())
    with mmattn.edit(family.model, Boost(3)):
        torch.testing.assert_close(family.attend(pictures[0], "what?", "yes").weights, read.weights)


def test_edits_are_applied_in_order_and_add_up(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])
    with mmattn.edit(vlm.model, Boost(6)):
        expected = _logits(vlm, inputs)
    with mmattn.edit(vlm.model, Boost(2), "boost(strength=3)"):
        torch.testing.assert_close(_logits(vlm, inputs), expected, atol=1e-4, rtol=1e-4)
    with mmattn.edit(vlm.model, Boost(2)), mmattn.edit(vlm.model, Boost(3)):
        torch.testing.assert_close(_logits(vlm, inputs), expected, atol=1e-4, rtol=1e-4)


def test_an_edit_works_in_both_branches_of_a_contrast(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 6, "stop_token_ids": []}
    both = vlm.generate(pictures, ["q"] * 5, method="boost(strength=4)+vcd(alpha=2, beta=0)", **settings)
    with mmattn.edit(vlm.model, Boost(4)):
        assert vlm.generate(pictures, ["q"] * 5, method=VCD(alpha=2, beta=0), **settings) == both
    assert vlm.generate(pictures, ["q"] * 5, method=VCD(alpha=2, beta=0), **settings) != both
    method = resolve("boost(strength=4)+vcd")
    assert method.label == "boost(strength=4)+vcd"
    assert method.settings()["name"] == "boost+vcd"
    assert [part["name"] for part in method.settings()["parts"]] == ["boost", "vcd"]
    assert resolve("greedy+boost") == Boost()
    with mmattn.edit(vlm.model, "boost+boost(strength=3)"):
        pass


class _Sink(edits.Edit):
    """A post-softmax edit of one layer: all attention to the first key."""

    def wants(self, layer: int, depth: int) -> bool:
        return layer == depth - 1

    def weights(self, weights: torch.Tensor, site: edits.Site) -> torch.Tensor:
        assert site.layer == site.depth - 1
        return torch.nn.functional.one_hot(torch.zeros_like(weights[..., 0]).long(), weights.shape[-1]).float()


def test_post_softmax_edits_of_chosen_layers(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    adapter, sample = vlm.adapter, mmattn.adapters.Sample((pictures[0],), "what?")
    values: dict[int, torch.Tensor] = {}
    mixed: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(adapter.attention_layers):
        layer.v_proj.register_forward_hook(lambda _m, _i, out, index=index: values.update({index: out}))
        layer.o_proj.register_forward_pre_hook(lambda _m, given, index=index: mixed.update({index: given[0]}))
    with torch.inference_mode(), adapter.session(edits=[_Sink()]) as session:
        prepared = adapter.prepare([sample])
        batch = adapter.embed(prepared, [adapter.encode(prepared[0].pixels)])
        session.columns = batch.columns
        adapter.decode(batch)
    for index, layer in enumerate(adapter.attention_layers):
        layer.v_proj._forward_hooks.clear()
        layer.o_proj._forward_pre_hooks.clear()
        first = values[index][0, 0].view(2, 1, 12).expand(2, 2, 12).flatten()
        moved = (mixed[index][0] - first).abs().amax(-1) < 1e-6
        text = torch.arange(len(moved)) > prepared[0].layout.image_tokens[-1]
        assert moved.tolist()[1:] == (text.tolist()[1:] if index == 2 else [False] * (len(moved) - 1))


def test_leaving_restores_the_model(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])
    plain = _logits(vlm, inputs)
    with pytest.raises(RuntimeError, match="inside"), mmattn.edit(vlm.model, Boost(3)):
        raise RuntimeError("inside")
    assert torch.equal(_logits(vlm, inputs), plain)
    assert not vlm.model.get_input_embeddings()._forward_pre_hooks
    assert not vlm.adapter.decoder._forward_pre_hooks
    assert implementation(vlm) == "sdpa"


def test_other_threads_are_not_edited(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])
    plain = _logits(vlm, inputs)
    seen: list[torch.Tensor] = []
    with mmattn.edit(vlm.model, Boost(3)):
        thread = threading.Thread(target=lambda: seen.append(_logits(vlm, inputs)))
        thread.start()
        thread.join()
        assert not torch.equal(_logits(vlm, inputs), plain)
    assert torch.equal(seen[0], plain)


def test_what_cannot_be_edited_is_told(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    inputs = inputs_of(vlm, [[pictures[0]]], ["what?"])
    with pytest.raises(MmattnError, match="vcd is more than an edit"), mmattn.edit(vlm.model, VCD()):
        pass
    with torch.no_grad():
        begun = vlm.model(**inputs, use_cache=True)[cache_argument(vlm.model)]
    with mmattn.edit(vlm.model, Boost(3)), pytest.raises(MmattnError, match="beginning of this generation"):
        vlm.model(input_ids=torch.tensor([[50]]), **{cache_argument(vlm.model): begun})
    embeds = vlm.model.get_input_embeddings()(inputs["input_ids"])
    with mmattn.edit(vlm.model, Boost(3)), pytest.raises(MmattnError, match="Pass input_ids"):
        vlm.model(inputs_embeds=embeds)
    with pytest.raises(MmattnError, match="boost strength"):
        Boost(0)
