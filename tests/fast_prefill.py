"""Run by `fast_step.py`: prompts that are read over fixed buffers, on a GPU by graphs."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

import mmattn
from mmattn.attention import Edit
from mmattn.decoding import Boost
from mmattn.decoding.boost import Bias
from mmattn.decoding.fast.captured import Captured
from tests.fast_step import KINDS, probe, recording, same_rows
from tests.test_methods import STRONG


@dataclass(frozen=True)
class LastBias(Bias):
    last_row: ClassVar[bool] = True


class Last(Boost):
    """Edits the last row alone."""

    def edits(self) -> tuple[Edit, ...]:
        return (LastBias(self.strength),)


def short_prompts(family: str, device: str, tokens: int, step: int = 1) -> None:
    """Prompts of about one length, on the same buffers one after the other, leave nothing to each other.

    Each `step`-th method is tried.
    """
    model, processor = KINDS[family]()
    vlm = mmattn.wrap(model.to(device), processor)
    pictures = [Image.effect_noise((size, 56), 80).convert("RGB") for size in (56, 56, 84)]
    words = [
        "what is on the left, and what is it that is far?",
        "what is this animal, behind that red fence?",
        "?" * 46,
    ]
    every, some = mmattn.Capture(device=None), mmattn.Capture(layers=[2, 0], heads=[1], device=None)
    methods: list[tuple[Any, Any]] = [
        (STRONG["var"] + "+" + STRONG["boost"], every), (Last(9), every), ("greedy", some), ("vcd", None)
    ]  # fmt: skip
    for method, capture in methods[::step]:
        settings: dict[str, Any] = {"method": method, "capture": capture, "max_new_tokens": tokens}
        for shown, asked, known in [
            (pictures[0], words[0], 0), (pictures[2], words[1], 1), (pictures[:2], [words[0]] * 2, 0),
            (pictures[1], words[2], 1),
        ]:  # fmt: skip
            expected = vlm.generate(shown, asked, fast=False, **settings)
            with recording(Captured, "run") as run, recording(Captured, "load") as loaded:
                found = vlm.generate(shown, asked, **settings)
            # On a GPU a shape that is new runs once more, to be captured.
            assert run() == (1 if known or device == "cpu" else 2), method
            assert loaded() == known, method
            assert found == expected, (method, capture, found, expected)
            several = isinstance(found, list)
            same_rows(found if several else [found], expected if several else [expected], capture)
    with recording(Captured, "run") as run:
        probe(vlm, pictures, words)  # into a cache of its own
        vlm.generate(pictures, words, method="vcd", max_new_tokens=tokens)  # of different length
        vlm.generate(pictures[0], words, method="vcd", max_new_tokens=tokens)  # what they begin with once
        assert run() == 0


def forgotten(device: str) -> None:
    """What a lane keeps of prompts keeps no model."""
    model, processor = KINDS["llava"]()
    vlm = mmattn.wrap(model.to(device), processor)
    with recording(Captured, "run") as run:
        vlm.generate(Image.effect_noise((56, 56), 80).convert("RGB"), "what?", max_new_tokens=2)
    assert run()
    kept = weakref.ref(model)
    del vlm, model, processor
    gc.collect()
    assert kept() is None
