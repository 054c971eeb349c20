"""Run by `test_fast_step.py` with Triton's interpreter, and on a GPU without it: steps of a tiny model, twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image

import mmattn
from mmattn.adapters import Sample, SharedCache, adapter_for
from mmattn.attention import Edit, Site
from mmattn.decoding import Boost, resolve
from mmattn.decoding.boost import Bias
from mmattn.decoding.branching import _probe
from mmattn.decoding.fast import LANES, choosing
from mmattn.decoding.fast import blocks as cuts
from mmattn.decoding.fast import rows as fast_rows
from mmattn.decoding.fast import step as fast
from mmattn.decoding.fast.keeping import KeptRows
from mmattn.decoding.fast.lane import Lane
from mmattn.decoding.fast.parts import take_apart
from mmattn.decoding.fast.reading import LastRows
from mmattn.decoding.fast.rows import EditedRows
from mmattn.decoding.fast.step import DecodeStep
from mmattn.decoding.features import Features
from mmattn.decoding.requests import Options, Request
from mmattn.decoding.sampling import Sampling
from tests.fast_choosing import choices
from tests.test_methods import STRONG
from tests.tiny import FAMILIES, tiny_llava

STEPS = 2
LONG = 1 << 15  # scores at once, of which a token is chosen: the interpreter takes its time over each program
# Heads of whole blocks, one or (for a single row) several, which the projection rotates by itself; each with a key head
# of its own.
KINDS = {**FAMILIES, "wide": partial(tiny_llava, 4, head_dim=32)}
# Edits that remember the prefill, tell the layers above, change heads' output or part of the branches, tokens that a
# branch must not see, and early layers.
FULL = [
    (STRONG["vhr"] + "+" + STRONG["rbd"], None),
    (STRONG["act"] + "+" + STRONG["sid"], None),
    (STRONG["var"] + "+" + STRONG["boost"], mmattn.Capture(device=None)),
    (STRONG["var"] + "+" + STRONG["pasta"] + "+dola(layers='2 0', norm=1, beta=0.001)", mmattn.Capture(device=None)),
]
# What each of the three samples emphasises, where a method steers.
MARKS = ["what", [(0, 0, 30, 30), "left"], None]


@contextmanager
def recording(kind: type, name: str) -> Iterator[Callable[[], int]]:
    """Counts calls of a method."""
    before, calls = getattr(kind, name), []

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(name)
        return before(*given, **named)

    with patch.object(kind, name, counted):
        yield lambda: len(calls)


@torch.inference_mode()
def compare(family: str, rows: int, device: str = "cpu") -> float:
    """The largest difference of logits over the steps of a padded batch of `rows`."""
    model, processor = KINDS[family]()
    adapter = adapter_for(model.to(device), processor)
    pictures = [Image.effect_noise((70, 50), 80).convert("RGB"), Image.effect_noise((56, 56), 50).convert("RGB")]
    words = ("what", "what is on the left?", "where")
    prepared = adapter.prepare([Sample((pictures[one % 2],), words[one % 3]) for one in range(rows)])
    features = adapter.encode([one.pixels[0] for one in prepared])
    batch = adapter.embed(prepared, [[one] for one in features])
    cache = adapter.new_cache()
    assert isinstance(cache, SharedCache)
    adapter.decode(batch, cache)
    width = batch.mask.shape[1]
    parts = take_apart(adapter)
    shape = (len(parts.layers), rows, parts.groups, width + STEPS + 5, parts.dim)
    keys, values = (
        torch.randn(shape, device=device),
        torch.randn(shape, device=device),
    )  # what is unused may be anything
    adapter.decode(batch, SharedCache(len(parts.layers), (keys, values)))
    every = torch.arange(shape[3], device=device).repeat(rows, 1)
    kept = KeptRows((1,), range(parts.heads), parts.heads, rows, shape[3], keys.device)
    kept.start(torch.zeros(rows, dtype=torch.int32, device=device))
    step = DecodeStep(parts, keys, values, 200, kept=kept, hides=True)
    step.reset()
    step.length.fill_(width)
    step.begins.copy_((batch.mask == 0).sum(-1))
    step.positions.copy_((batch.positions[0] if batch.positions.ndim == 3 else batch.positions)[:, -1] + 1)
    worst = 0.0
    for number in range(STEPS):
        tokens = torch.arange(rows, device=device) + 7 + number
        batch = adapter.follow(batch, tokens)
        expected = adapter.logits(adapter.decode(batch, cache)[:, -1])
        step.tokens.copy_(tokens)
        step.run()
        worst = max(worst, (step.logits - expected).abs().max().item())
    assert int(step.length) == width + STEPS
    seen = (every >= step.begins[:, None]) & (every < width + STEPS)
    weights = kept.of_piece(0)[:, 0].where(seen[:, None], 0)  # of other slots nothing is left
    assert torch.allclose(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    return worst


def generate(family: str, device: str, tokens: int, methods: Sequence[tuple[str, Any]]) -> None:
    """Three samples of different length, with one branch, two, and `methods`: the same answers either way."""
    model, processor = KINDS[family]()
    vlm = mmattn.wrap(model.to(device), processor)
    pictures = [Image.effect_noise((50 + 9 * one, 56), 80).convert("RGB") for one in range(3)]
    words = ["what", "what is on the left?", "where"]
    for method, drawn in (("greedy", False), ("vcd", True), ("greedy", False)):
        settings: dict[str, Any] = {"method": method, "do_sample": drawn, "max_new_tokens": tokens}
        expected = vlm.generate(pictures, words, fast=False, **settings)
        assert vlm.generate(pictures, words, **settings) == expected
    assert len(LANES._kept[model]) == 2, "the third call should have used the first one's lane"
    kept = mmattn.Capture(layers=[2, 0], heads=[1], tokens=[0, 2], device=None)
    for method, capture in [("boost(strength=3)+vcd", kept), *methods]:
        # The prompts' rows that are edited come in one portion, or two at a time.
        portion = fast_rows.at_once if capture is kept else lambda *_: 2
        settings = {"method": method, "max_new_tokens": tokens, "emphasise": MARKS if "pasta" in method else None}
        expected = vlm.generate(pictures, words, fast=False, capture=capture, **settings)
        heard: list[tuple[int, int]] = []
        with patch.object(fast_rows, "at_once", portion), recording(Lane, "finish") as finished:
            found = vlm.generate(pictures, words, capture=capture, on_token=lambda *one: heard.append(one), **settings)  # noqa: B023
        told = [tuple(token for number, token in heard if number == one) for one in range(3)]
        assert told == [one.token_ids for one in found]
        assert finished() == 1, f"{method} did not decode in a lane"
        assert found == expected, (method, capture, found, expected)
        assert expected != vlm.generate(pictures, words, max_new_tokens=tokens, fast=False)
        same_rows(found, expected, capture)
    probe(vlm, pictures, words)
    unedited(family, device, tokens)


def unedited(family: str, device: str, tokens: int) -> None:
    """Rows that are kept where nobody edits: of questions about one picture, whose prefill they share, and of two
    pictures with words between them."""
    model, processor = KINDS[family]()
    vlm = mmattn.wrap(model.to(device), processor)
    pictures = [Image.effect_noise((50 + 9 * one, 56), 80).convert("RGB") for one in range(2)]
    every, some = mmattn.Capture(device=None), mmattn.Capture(layers=[2, 0], heads=[1], tokens=[0, 2])
    pairs = [pictures, pictures[::-1]]
    for shown, words, kept in (
        (pictures[0], ["what", "what is on the left?", "where"], some),
        (pairs, ["is {image} like {image}?", "{image} {image} what?"], every),
    ):
        settings: dict[str, Any] = {"images": shown, "prompts": words, "capture": kept, "max_new_tokens": tokens}
        expected = vlm.generate(fast=False, share=False, **settings)
        with recording(LastRows, "read") as read, recording(Lane, "finish") as finished:
            found = vlm.generate(**settings)
        assert read()
        assert finished()
        assert found == expected
        same_rows(found, expected, kept)
    for one, shown, word in zip(found, pairs, words, strict=True):
        assert one.attention is not None
        alone = vlm.attend(shown, word, rows="last").weights[:, :, 0]
        assert torch.allclose(one.attention.weights[:, :, 0].cpu(), alone.cpu(), atol=1e-5)
    # Words alone, in a lane that has room for the rows of pictures.
    settings = {"capture": every, "max_new_tokens": tokens}
    vlm.generate(pictures[:1], ["what is this?"], **settings)
    with recording(Lane, "finish") as finished:
        [one] = vlm.generate([None], ["what is this?"], **settings)
    assert finished()
    [expected] = vlm.generate([None], ["what is this?"], fast=False, **settings)
    assert one == expected
    assert one.attention is not None
    assert one.attention.positions == ()
    assert one.attention.weights.shape == (0, 0, 0, 0)


def probe(vlm: mmattn.VLM, pictures: list[Image.Image], words: list[str]) -> None:
    """Where the model looks before RBD decodes is read by the kernels, once there has been a lane; with a shared
    picture, too."""
    options = Options(resolve("rbd"), Sampling(), frozenset(), 0)
    for shown in (pictures, pictures[:1] * 3):
        prepared = vlm.adapter.prepare([Sample((one,), word) for one, word in zip(shown, words, strict=True)])
        requests = [Request(Sample((), "-"), one, "", 0, 1) for one in prepared]
        with torch.inference_mode(), recording(LastRows, "read") as read:
            found = _probe(vlm.adapter, requests, Features(), options)
            assert read() == 1
            expected = _probe(vlm.adapter, requests, Features(), replace(options, fast=False))
            assert read() == 1
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one["plain"], other["plain"], atol=1e-5, rtol=1e-3)


def edits_in_a_prompt(family: str, device: str) -> None:
    """Layers that are read, and not edited, give what they gave; no number that an edit spoils is passed over."""
    model, processor = FAMILIES[family]()
    vlm = mmattn.wrap(model.to(device), processor)
    changed: dict[int, bool] = {}
    apply = EditedRows.apply

    def watched(self: EditedRows, layer: int, *given: torch.Tensor) -> None:
        if device == "cuda" and torch.cuda.is_current_stream_capturing():  # after it has run
            apply(self, layer, *given)
            return
        before = given[-1].clone()
        apply(self, layer, *given)
        changed[layer] = not torch.equal(before, given[-1])

    with patch.object(EditedRows, "apply", watched):
        settings: dict[str, Any] = {"max_new_tokens": 1, "capture": mmattn.Capture(device=None)}
        vlm.generate(Image.effect_noise((56, 56), 80).convert("RGB"), "what is this?", method=Middle(9), **settings)
        assert changed == {0: False, 1: True, 2: False}
        with pytest.raises(mmattn.MmattnError, match="not numbers"):
            vlm.generate(Image.effect_noise((56, 56), 80).convert("RGB"), "what?", method=Broken(9), max_new_tokens=1)


@dataclass(frozen=True)
class MiddleBias(Bias):
    def wants(self, layer: int, depth: int) -> bool:
        return layer == 1


@dataclass(frozen=True)
class Spoil(Edit):
    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        return weights * torch.nan


class Middle(Boost):
    """Edits one layer of three."""

    def edits(self) -> tuple[Edit, ...]:
        return (MiddleBias(self.strength),)


class Broken(Boost):
    """Gives weights that are no numbers."""

    def edits(self) -> tuple[Edit, ...]:
        return (Spoil(),)


def same_rows(found: Sequence[mmattn.Generation], expected: Sequence[mmattn.Generation], capture: Any) -> None:
    """Whether the attention that was kept is the same."""
    for one, other in zip(found, expected, strict=True):
        if capture is not None:
            assert one.attention is not None
            assert other.attention is not None
            assert torch.allclose(one.attention.weights.cpu(), other.attention.weights.cpu(), atol=1e-5)


def answers(families: Sequence[str], device: str, tokens: int) -> None:
    """What is generated, and what is kept of it; of the first family, and of "wide"."""
    with patch.object(choosing, "PART", LONG):
        generate(families[0], device, tokens, FULL)
        with patch.object(fast, "HELD", 64):  # in many parts, each as long as a program may hold
            unedited("wide", device, tokens)
        with patch.object(fast, "splits", lambda *_: 1):  # as in a batch that keeps the device busy by itself
            generate("wide", device, tokens, FULL[-1:])
            unedited(families[0], device, tokens)


def prompts(families: Sequence[str], device: str, tokens: int) -> None:
    """What is read before the first token."""
    from tests.fast_prefill import forgotten, short_prompts  # which takes from here

    with patch.object(choosing, "PART", LONG):
        edits_in_a_prompt(families[0], device)
        short_prompts("llava", device, tokens - 1)
        short_prompts("qwen2.5-vl", device, tokens - 1, step=4)  # whose pictures are of several sizes
        forgotten(device)


def steps(families: Sequence[str], device: str, _tokens: int) -> None:
    """Choices of tokens, and steps of each family; a single row takes other kernels than several."""
    choices(device)
    for family, rows in [(families[0], 2), ("wide", 20), *product([*families, "wide"], (1, 3))]:
        compared(family, rows, device)
    with patch.multiple(cuts, MANY=cuts.MANY + 1, WIDE=0):  # heads come in halves, and gated products are wide
        compared("wide", 3, device)


def compared(family: str, rows: int, device: str) -> None:
    """`compare`, and what came of it."""
    worst = compare(family, rows, device)
    sys.stdout.write(f"{family} {rows} rows: {worst:.1e}\n")
    assert worst < 1e-4, worst


def main(families: Sequence[str], parts: Sequence[Callable[..., None]] = (answers, prompts, steps)) -> None:
    """All or some of what is to be compared, of `families`."""
    cuts.MANY = 12 * 32  # as many as the heads of "wide" have
    cuts.OVERLAPPED, cuts.FINISHED_APART = 16, 3  # 20 rows are more; three that are kept are enough
    tables = (cuts.PRODUCT, cuts.PROJECT, cuts.PROJECT_FEW, cuts.GATED, cuts.GATED_WIDE, cuts.ONTO)
    for table in tables:  # small enough to be cut in tiny models, too
        for rows, blocks in table.items():
            several = 32 if table is cuts.PROJECT else 16  # a whole head of "wide"
            table[rows] = replace(blocks, m=min(blocks.m, 16), n=4 if rows == 1 else several, k=32)
    LANES.usable = lambda adapter: adapter.model not in LANES._refused  # type: ignore[method-assign]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for part in parts:
        part(families, device, 3 if device == "cpu" else 20)


if __name__ == "__main__":
    main(sys.argv[1:])
