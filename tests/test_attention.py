"""Invariants 1, 2, 7 and 8: the attention function changes nothing, reads exactly, is scoped, and stays linear."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import DynamicCache, StaticCache

import mmattn
from mmattn.adapters.cache import cache_argument
from mmattn.attention import NAME, RowCapture
from mmattn.attention.session import _SWITCHES
from tests.tiny import tiny_llava


def _inputs(vlm: mmattn.VLM, pictures: list[Any], prompts: list[str]) -> dict[str, torch.Tensor]:
    """A left-padded batch made by the real processor; one picture per prompt, two for the last."""
    images = [[picture] for picture in pictures[: len(prompts)]]
    images[-1].append(pictures[0])
    texts = [f"USER: {'<image>' * len(row)}{text} ASSISTANT:" for row, text in zip(images, prompts, strict=True)]
    vlm.processor.tokenizer.padding_side = "left"
    return dict(vlm.processor(images=images, text=texts, padding=True, return_tensors="pt"))


PROMPTS = ["what?", "a much longer question", "two"]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_nothing_asked_nothing_changed(kv_heads: int, pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*tiny_llava(kv_heads))
    inputs = _inputs(vlm, pictures, PROMPTS)
    plain = vlm.model(**inputs).logits
    with vlm.adapter.session():
        assert vlm.model.config.text_config._attn_implementation == NAME
        assert torch.equal(vlm.model(**inputs).logits, plain)
    capture = RowCapture(torch.full((3, 1), -1))
    with vlm.adapter.session(capture):
        assert torch.equal(vlm.model(**inputs).logits, plain)
    assert sorted(capture.weights) == [0, 1, 2]
    assert torch.equal(vlm.model(**inputs).logits, plain)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
def test_captured_rows_equal_eager(kv_heads: int, padded: bool, cache: str, pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*tiny_llava(kv_heads, spread=0.1))
    inputs = _inputs(vlm, pictures, PROMPTS if padded else ["one"])
    length = inputs["input_ids"].shape[1]
    assert bool((inputs["attention_mask"] == 0).any()) == padded
    rows = torch.tensor([[length - 1, length - 3], [-1, -2], [length - 2, length - 1]])[: len(inputs["input_ids"])]
    vlm.model.set_attn_implementation({"text_config": "eager"})
    maps = vlm.model(**inputs, output_attentions=True).attentions
    vlm.model.set_attn_implementation({"text_config": "sdpa"})

    config = vlm.model.config.text_config
    caches = {"none": None, "dynamic": DynamicCache(config=config), "static": StaticCache(config, max_cache_len=96)}
    capture = RowCapture(rows)
    with torch.inference_mode(), vlm.adapter.session(capture):
        vlm.model(**inputs, **{cache_argument(vlm.model): caches[cache]}, use_cache=cache != "none")
    for layer, full in enumerate(maps):
        for sample, wanted in enumerate(rows.tolist()):
            got = capture.weights[layer][sample]
            torch.testing.assert_close(got[..., :length], full[sample][:, wanted], atol=1e-6, rtol=0)
            assert got[..., length:].abs().sum() == 0
    torch.testing.assert_close(capture.weights[0].sum(-1), torch.ones(len(rows), 4, 2), atol=1e-5, rtol=0)


def test_rows_of_a_cached_decode_step_equal_eager(pictures: list[Any]) -> None:
    vlm = mmattn.wrap(*tiny_llava(spread=0.1))
    inputs = _inputs(vlm, pictures, PROMPTS)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    vlm.model.set_attn_implementation({"text_config": "eager"})
    maps = vlm.model(**inputs, position_ids=positions, output_attentions=True).attentions
    vlm.model.set_attn_implementation({"text_config": "sdpa"})

    cache = DynamicCache(config=vlm.model.config.text_config)
    head = {**inputs, "input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "position_ids": positions[:, :-1]}
    capture = RowCapture(torch.full((3, 1), -1))
    with torch.inference_mode():
        vlm.model(**head, **{cache_argument(vlm.model): cache})
        with vlm.adapter.session(capture):
            last = {"input_ids": ids[:, -1:], "attention_mask": mask, "position_ids": positions[:, -1:]}
            vlm.model(**last, **{cache_argument(vlm.model): cache})
    for layer, full in enumerate(maps):
        torch.testing.assert_close(capture.weights[layer], full[:, :, -1:], atol=1e-6, rtol=0)


def test_leaving_restores_even_after_an_exception(vlm: mmattn.VLM) -> None:
    vlm.model.set_attn_implementation({"text_config": "eager"})
    with pytest.raises(RuntimeError, match="inside"), vlm.adapter.session(), vlm.adapter.session():
        assert vlm.model.config.text_config._attn_implementation == NAME
        raise RuntimeError("inside")
    assert vlm.model.config.text_config._attn_implementation == "eager"
    assert vlm.model.config.vision_config._attn_implementation == "sdpa"
    vlm.model.set_attn_implementation({"text_config": "sdpa"})
    assert not _SWITCHES


def test_two_models_do_not_meet(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    other = mmattn.wrap(*tiny_llava(seed=2))
    inputs = _inputs(vlm, pictures, ["one"])
    capture = RowCapture(torch.tensor([[-1]]))
    with vlm.adapter.session(capture), other.adapter.session():
        other.model(**inputs)
        assert not capture.weights
        vlm.model(**inputs)
        assert capture.weights


def test_two_threads_do_not_meet(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    """Both threads use the same model; only the one that asked gets rows, and the switch lasts until both left."""
    inputs = _inputs(vlm, pictures, ["one"])
    capture = RowCapture(torch.tensor([[-1]]))
    entered, checked = threading.Event(), threading.Event()
    seen: list[int] = []

    def other() -> None:
        with vlm.adapter.session():
            entered.wait(10)
            vlm.model(**inputs)
            seen.append(len(capture.weights))
            checked.set()

    thread = threading.Thread(target=other)
    thread.start()
    with vlm.adapter.session(capture):
        entered.set()
        assert checked.wait(10)
        vlm.model(**inputs)
    thread.join(10)
    assert seen == [0]
    assert len(capture.weights) == 3
    assert vlm.model.config.text_config._attn_implementation == "sdpa"


class _Bytes(TorchDispatchMode):
    """Adds up the bytes of everything computed: linear in T only if nothing quadratic is ever made."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.total += sum(leaf.untyped_storage().nbytes() for leaf in leaves)
        return result


def test_memory_of_a_captured_prefill_is_linear(vlm: mmattn.VLM) -> None:
    def total(length: int, captured: bool) -> int:
        ids = torch.randint(4, 200, (1, length))
        capture = RowCapture(torch.tensor([[-1, 5]])) if captured else None
        with torch.inference_mode(), vlm.adapter.session(capture), _Bytes() as counter:
            vlm.model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=1, use_cache=False)
        return counter.total

    # A single (4, T, T) float map per layer would multiply this growth by about four instead of two.
    assert total(1024, True) / total(512, True) < 2.1
    reading = [total(length, True) - total(length, False) for length in (512, 1024)]
    assert 0 < reading[1] < 2.1 * reading[0]


def test_layers_that_are_read_together_come_in_the_order_asked_for() -> None:
    rows, read = torch.full((2, 1), -1), torch.arange(3.0)[:, None, None, None, None].expand(3, 2, 4, 1, 5)
    for layers, order in ((None, [0, 1, 2]), ((1, 4, 7), [0, 1, 2]), ((7, 1, 4), [2, 0, 1])):
        capture = RowCapture(rows, layers=layers, together=read)
        assert capture.stacked()[:, 0, 0, 0, 0].tolist() == order
