"""Invariants 4, 5 and 6: neutral strength is plain decoding, a batch is its samples, one decoder call per step."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import mmattn
from mmattn.decoding import VCD
from mmattn.errors import MmattnError
from tests.tiny import tiny_llava

PROMPTS = ["what?", "a longer question this time", "x", "is it?", "describe the image"]


@contextmanager
def decoder_calls(vlm: mmattn.VLM) -> Iterator[list[int]]:
    """The batch sizes of the decoder's calls."""
    calls: list[int] = []
    hook = vlm.adapter.decoder.register_forward_hook(
        lambda _module, _args, kwargs, _out: calls.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def test_greedy_equals_transformers_generate(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    for picture, prompt in zip(pictures, PROMPTS, strict=True):
        inputs = vlm.processor(images=picture, text=f"USER: <image>\n{prompt} ASSISTANT:", return_tensors="pt")
        expected = vlm.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        got = vlm.generate(picture, prompt, max_new_tokens=12)[0]
        expected_ids = [token for token in expected.tolist() if token != 2]
        assert list(got.token_ids) == expected_ids
        assert got.finish_reason == ("stop" if len(expected_ids) < 12 else "length")


@pytest.mark.parametrize("method", ["greedy", "vcd", "vcd(alpha=2.5, beta=0.3, noise_step=900)"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_batch_is_its_samples(vlm: mmattn.VLM, pictures: list[Any], method: str, do_sample: bool) -> None:
    settings: dict[str, Any] = {"method": method, "max_new_tokens": 8, "do_sample": do_sample, "seed": 3}
    alone = [vlm.generate(one, text, **settings)[0] for one, text in zip(pictures, PROMPTS, strict=True)]
    for size in (5, 2):
        assert vlm.generate(pictures, PROMPTS, batch_size=size, **settings) == alone
    order = [3, 0, 4, 2, 1]
    shuffled = vlm.generate([pictures[i] for i in order], [PROMPTS[i] for i in order], **settings)
    assert shuffled == [alone[i] for i in order]


def test_text_only_and_several_pictures_share_a_batch(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    images = [None, [pictures[0], pictures[1]], pictures[2]]
    together = vlm.generate(images, PROMPTS[:3], max_new_tokens=6)
    assert together == [vlm.generate([i], [p], max_new_tokens=6)[0] for i, p in zip(images, PROMPTS[:3], strict=True)]


def test_logits_of_a_padded_batch_equal_single_ones(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    def scores(indices: list[int]) -> torch.Tensor:
        adapter = vlm.adapter
        prepared = adapter.prepare([mmattn.adapters.Sample((pictures[i],), PROMPTS[i]) for i in indices])
        with torch.inference_mode():
            batch = adapter.embed(prepared, [adapter.encode(one.pixels) for one in prepared])
            out = adapter.decoder(
                inputs_embeds=batch.embeds, attention_mask=batch.mask, position_ids=batch.positions
            ).last_hidden_state[:, -1]
            return adapter.logits(out)

    torch.testing.assert_close(scores([0, 1, 2]), torch.cat([scores([i]) for i in range(3)]), atol=1e-4, rtol=1e-4)


def test_positions_do_not_count_padding(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    """Rotary embeddings would forgive a shift; learned positions of other families would not."""
    prepared = vlm.adapter.prepare([mmattn.adapters.Sample((), text) for text in ("a", "abcd")])
    batch = vlm.adapter.embed(prepared, [[], []])
    assert batch.mask[0].tolist() == [0, 0, 0] + [1] * len(prepared[0].ids)
    assert batch.positions[0, 3:].tolist() == list(range(len(prepared[0].ids)))


@pytest.mark.parametrize(("method", "branches"), [("greedy", 1), ("vcd", 2)])
def test_one_decoder_call_per_step(vlm: mmattn.VLM, pictures: list[Any], method: str, branches: int) -> None:
    with decoder_calls(vlm) as calls:
        vlm.generate(pictures[:3], PROMPTS[:3], method=method, max_new_tokens=7, stop_token_ids=[])
    assert calls == [3 * branches] * 7


@pytest.mark.parametrize("do_sample", [False, True])
def test_vcd_without_strength_is_plain(vlm: mmattn.VLM, pictures: list[Any], do_sample: bool) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 10, "do_sample": do_sample}
    plain = vlm.generate(pictures, PROMPTS, **settings)
    assert vlm.generate(pictures, PROMPTS, method=VCD(alpha=0, beta=0), **settings) == plain
    if not do_sample:  # with alpha=0 the plausibility cut cannot remove the best token
        assert vlm.generate(pictures, PROMPTS, method=VCD(alpha=0), **settings) == plain
    changed = vlm.generate(pictures, PROMPTS, method=VCD(alpha=3, noise_step=999), **settings)
    assert changed != plain


def test_seed_and_content_fix_every_draw(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    def draw(seed: int) -> list[mmattn.Generation]:
        torch.manual_seed(draws.pop())  # the global generator must not matter
        return vlm.generate(pictures[0], ["q"] * 4, max_new_tokens=6, do_sample=True, seed=seed, temperature=3.0)

    draws = [1, 2, 3]
    first, again, other = draw(0), draw(0), draw(1)
    assert first == again
    assert first != other
    assert len({one.token_ids for one in first}) > 1, "equal samples in one call must draw differently"


def test_keys_name_the_random_streams(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "temperature": 3.0}
    same = vlm.generate(pictures[0], ["q", "q"], keys=["a", "a"], **settings)
    assert same[0] == same[1]
    alone = vlm.generate(pictures[0], ["q"], keys=["b"], **settings)[0]
    assert vlm.generate(pictures[0], ["q", "q"], keys=["a", "b"], **settings) == [same[0], alone]
    assert alone != same[0]
    noised: dict[str, Any] = {"method": VCD(3, 0, 999), "max_new_tokens": 6}
    both = vlm.generate(pictures[:2], ["q", "q"], keys=["a", "a"], **noised)
    assert both == [vlm.generate(one, ["q"], keys=["a"], **noised)[0] for one in pictures[:2]]


def test_stop_tokens_end_an_answer(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    full = vlm.generate(pictures[0], "q", max_new_tokens=8, stop_token_ids=[])[0]
    stop = full.token_ids[3]
    cut = vlm.generate(pictures[0], "q", max_new_tokens=8, stop_token_ids=[stop])[0]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == tuple(itertools.takewhile(lambda token: token != stop, full.token_ids))
    assert full.finish_reason == "length"


@pytest.mark.parametrize("size", [5, 2])
def test_tokens_are_told_as_they_are_chosen(vlm: mmattn.VLM, pictures: list[Any], size: int) -> None:
    heard: list[tuple[int, int]] = []
    with decoder_calls(vlm) as calls:
        answers = vlm.generate(
            pictures, PROMPTS, max_new_tokens=8, batch_size=size, method="vcd",
            on_token=lambda number, token: heard.append((number, token)),
        )  # fmt: skip
    told = [tuple(token for number, token in heard if number == one) for one in range(5)]
    assert told == [one.token_ids for one in answers]
    assert len({len(one) for one in told}) > 1, "some answer should end before the others"
    if size == 5:  # step by step, not all at the end
        assert sorted(number for number, _ in heard[:5]) == list(range(5))
    assert len(calls) >= 8


def test_what_a_listener_raises_ends_the_call(vlm: mmattn.VLM, pictures: list[Any]) -> None:
    heard: list[int] = []

    def tell(_number: int, token: int) -> None:
        heard.append(token)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with decoder_calls(vlm) as calls, pytest.raises(KeyboardInterrupt):
        vlm.generate(pictures[0], "what?", max_new_tokens=8, on_token=tell)
    assert len(calls) == 3
    assert vlm.generate(pictures[0], "what?", max_new_tokens=3)[0].token_ids == tuple(heard)


def test_the_models_window_ends_an_answer(pictures: list[Any]) -> None:
    """A limit that no window holds costs nothing and ends each answer where its own window ends."""
    small = mmattn.wrap(*tiny_llava())
    small.model.config.text_config.max_position_embeddings = 60
    prompts = ["a", "a longer question"]
    settings: dict[str, Any] = {"max_new_tokens": 10**11, "stop_token_ids": [], "do_sample": True}
    got = small.generate(pictures[0], prompts, **settings)
    lengths = [
        len(one.ids) for one in small.adapter.prepare([mmattn.adapters.Sample((pictures[0],), p) for p in prompts])
    ]
    assert [len(one.token_ids) for one in got] == [60 - length + 1 for length in lengths]
    assert {one.finish_reason for one in got} == {"length"}
    assert got == [small.generate(pictures[0], p, **settings)[0] for p in prompts]


@pytest.mark.parametrize("method", ["greedy", "vcd", "rbd", "dola"])
@pytest.mark.parametrize("rows", [slice(None), slice(7, 8)])
def test_scores_that_are_no_numbers_are_told(pictures: list[Any], method: str, rows: slice) -> None:
    ill = mmattn.wrap(*tiny_llava())
    torch.nn.init.constant_(ill.model.lm_head.weight.data[rows], float("nan"))
    with pytest.raises(MmattnError, match="not numbers"):
        ill.generate(pictures[0], "q", method=method)


def test_out_of_memory_halves_the_batch_and_keeps_finished_work(
    vlm: mmattn.VLM, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = vlm.generate(pictures, PROMPTS, max_new_tokens=4)
    decode, sizes = vlm.adapter.decode, []

    def limited(batch: Any, cache: Any) -> torch.Tensor:
        sizes.append(len(batch.embeds))
        if len(batch.embeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(batch, cache)

    monkeypatch.setattr(vlm.adapter, "decode", limited)
    finished: list[int] = []
    assert vlm.generate(pictures, PROMPTS, max_new_tokens=4, on_done=finished.append) == expected
    assert sizes[0] == 5
    assert sum(finished) == 5
    on_cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    for error in (torch.OutOfMemoryError("no"), MemoryError(), on_cpu):
        monkeypatch.setattr(vlm.adapter, "decode", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(MmattnError, match="single sample"):
            vlm.generate(pictures[0], "q")
    monkeypatch.setattr(vlm.adapter, "decode", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        vlm.generate(pictures[0], "q")


BAD = [
    ({"method": "vdc"}, "Did you mean vcd"),
    ({"method": "vcd(gamma=1)"}, "gamma"),
    ({"method": "vcd(0.5)"}, "need their names"),
    ({"method": "vcd(alpha='x')"}, "must be a number"),
    ({"method": "vcd(noise_step=1000)"}, "0..999"),
    ({"method": "vcd+vcd"}, "both rewrite"),
    ({"method": "vcd+boost+vcd(alpha=2)"}, "vcd and vcd both rewrite"),
    ({"method": "boost+vdc"}, "Did you mean vcd"),
    ({"method": "boost+vcd", "images": None}, "boost+vcd needs a picture"),
    ({"method": "vcd("}, "Cannot read"),
    ({"method": 3}, "name or an instance"),
    ({"method": "vcd(alpha=1) if (1) else f(1)"}, "more than a list"),
    ({"method": "vcd(**{})"}, "need their names"),
    ({"method": "vcd(alpha=-1)"}, "VCD alpha must be a finite number of at least 0, not -1"),
    ({"method": "vcd(alpha=1e999)"}, "not inf"),
    ({"method": "vcd(alpha=1" + "0" * 400 + ")"}, "VCD alpha must be a finite number"),
    ({"method": "vcd(noise_step=5.5)"}, "not 5.5"),
    ({"max_new_tokens": 0}, "at least 1"),
    ({"max_new_tokens": 2.5}, "whole number of at least 1, not 2.5"),
    ({"max_new_tokens": True}, "not True"),
    ({"batch_size": 0}, "at least 1"),
    ({"stop_token_ids": [-1]}, "stop_token_ids must be a whole number in 0..259, not -1"),
    ({"stop_token_ids": [300]}, "not 300"),
    ({"stop_token_ids": "x"}, "list of token ids, not str"),
    ({"stop_token_ids": 3}, "list of token ids, not int"),
    ({"temperature": 0.0}, "above 0"),
    ({"temperature": float("nan")}, "not nan"),
    ({"temperature": float("inf")}, "not inf"),
    ({"top_p": "x"}, "not 'x'"),
    ({"top_k": 1.5}, "not 1.5"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"prompts": " "}, "prompt is empty"),
    ({"prompts": "see <image> here"}, "placeholder"),
    ({"prompts": ["a", "b"], "images": [None]}, "1 images for 2 prompts"),
    ({"prompts": [3]}, "must be text"),
    ({"prompts": None}, "list of texts, not NoneType"),
    ({"prompts": {"a": 1}}, "list of texts, not dict"),
    ({"prompts": "a\udc80"}, "half a character"),
    ({"prompts": "x" * 3000}, "3035 tokens with its pictures, the model holds 2048"),
    ({"images": None, "method": "vcd"}, "needs a picture"),
    ({"keys": ["a", "b"]}, "2 keys for 1 prompts"),
    ({"images": "nowhere.png"}, "does not exist"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_requests_name_the_problem(
    vlm: mmattn.VLM, pictures: list[Any], change: dict[str, Any], message: str
) -> None:
    call = {"images": pictures[0], "prompts": "what?", **change}
    with pytest.raises(MmattnError, match=re.escape(message)):
        vlm.generate(**call)


def test_unsupported_family_lists_the_supported_ones() -> None:
    from transformers import BertConfig, BertModel

    small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(MmattnError, match=r"'bert' are not supported.*llava"):
        mmattn.wrap(BertModel(small), None)


def test_a_processor_without_template_gets_the_llava_one(pictures: list[Any], vlm: mmattn.VLM) -> None:
    bare = mmattn.wrap(*tiny_llava(template=None))
    assert bare.generate(pictures[0], "q") == vlm.generate(pictures[0], "q")


def test_a_processor_of_another_model_is_refused(pictures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = mmattn.wrap(tiny_llava(size=112)[0], tiny_llava(size=56)[1])
    with pytest.raises(MmattnError, match="56 x 56 pixels, but the vision tower wants 112 x 112"):
        mixed.generate(pictures[0], "q")
    mixed = mmattn.wrap(*tiny_llava())
    monkeypatch.setattr(mixed.model.config, "vision_feature_select_strategy", "full")
    with pytest.raises(MmattnError, match="17 features for 16 image tokens"):
        mixed.generate(pictures[0], "q")
