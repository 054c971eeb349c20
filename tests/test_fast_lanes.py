"""What the fast step refuses, and how that is told."""

from __future__ import annotations

import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import mmattn
from mmattn.adapters import Embedded, SharedCache, adapter_for
from mmattn.attention import Columns, RowCapture
from mmattn.decoding import engine
from mmattn.decoding.engine import current
from mmattn.decoding.fast import LANES, Lanes, Rules, Size
from mmattn.decoding.fast.parts import NotFastError, take_apart
from mmattn.decoding.method import Method
from mmattn.decoding.sampling import Sampling
from tests.tiny import FAMILIES, tiny_llava

RULES = Rules(Method(), Sampling(), frozenset({2}))


class Other(nn.Linear):
    """A product that is more than its weight."""


def test_known_decoders_are_taken_apart_without_copies() -> None:
    model, processor = tiny_llava()
    parts = take_apart(adapter_for(model, processor))
    assert (len(parts.layers), parts.heads, parts.groups, parts.dim) == (3, 4, 2, 12)
    assert parts.layers[1].gate is model.model.language_model.layers[1].mlp.gate_proj.weight
    assert parts.pointers() == take_apart(adapter_for(model, processor)).pointers()
    model.model.language_model.layers[0].mlp.down_proj.weight.data = torch.zeros(48, 96)
    assert parts.pointers() == take_apart(adapter_for(model, processor)).pointers()  # by reference: seen by both


def test_decoders_of_another_build_are_refused() -> None:
    with pytest.raises(NotFastError, match="T5"):
        take_apart(adapter_for(*FAMILIES["instructblip-t5"]()))


@pytest.mark.parametrize("change", ["hook", "product", "bias", "type", "place", "window", "activation"])
def test_changed_decoders_are_refused(change: str) -> None:
    model, processor = tiny_llava()
    decoder = model.model.language_model
    layer = decoder.layers[1]
    if change == "hook":
        layer.register_forward_hook(lambda *_: None)
    elif change == "product":
        layer.self_attn.q_proj = Other(48, 48, bias=False)
    elif change == "bias":
        layer.mlp.down_proj = nn.Linear(96, 48)
    elif change == "type":
        layer.mlp.down_proj.to(torch.bfloat16)
    elif change == "place":
        layer.mlp.down_proj.weight.data = torch.zeros(48 * 96 + 1)[1:].view(48, 96)
    elif change == "window":
        decoder.config.layer_types = ["sliding_attention"] * 3
    else:
        decoder.config.hidden_act = "gelu"
    with pytest.raises(NotFastError):
        take_apart(adapter_for(model, processor))


def test_a_refusal_is_told_once_and_decoding_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lanes, "usable", lambda self, adapter: adapter.model not in self._refused)
    vlm = mmattn.wrap(*FAMILIES["instructblip-t5"]())
    picture = Image.effect_noise((56, 56), 80).convert("RGB")
    with pytest.warns(UserWarning, match="step by step"):
        first = vlm.generate(picture, "what", max_new_tokens=3)
    assert vlm.generate(picture, "what", max_new_tokens=3) == first  # a second warning would be an error


def test_without_a_gpu_there_is_no_lane() -> None:
    adapter = adapter_for(*tiny_llava())
    assert LANES.take(adapter, RULES, Size(1, 10, 5)) is None


def test_a_lane_is_freed_before_another_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a cache: two of them may not fit."""
    adapter = adapter_for(*tiny_llava())
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Small:
        valid = True

        def __init__(self, *_: Any) -> None:
            alive.append(sum(one() is not None for one in made))
            made.append(weakref.ref(self))

        def fits(self, *_: Any) -> bool:
            return False

    monkeypatch.setattr(Lanes, "usable", lambda *_: True)
    monkeypatch.setattr("mmattn.decoding.fast.lane.Lane", Small)
    lanes = Lanes(room=2)
    for _ in range(4):
        lane = lanes.take(adapter, RULES, Size(1, 10, 5))
        assert lane is not None
        lanes.give(adapter, lane)
        del lane
    assert alive == [0, 1, 1, 1]


def test_lanes_are_round_numbers() -> None:
    assert Size(5, 700, 65, 576).rounded() == Size(8, 768, 128, 576)
    assert Size(1, 1, 1).rounded() == Size(1, 256, 64, 0)


def test_two_threads_never_get_the_same_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_for(*tiny_llava())

    class Slow:
        valid = True

        def __init__(self, *_: Any) -> None: ...

        def fits(self, *_: Any) -> bool:
            time.sleep(0.01)
            return True

    monkeypatch.setattr(Lanes, "usable", lambda *_: True)
    monkeypatch.setattr("mmattn.decoding.fast.lane.Lane", Slow)
    lanes = Lanes(room=2)
    first = lanes.take(adapter, RULES, Size(1, 10, 5))
    assert first is not None
    lanes.give(adapter, first)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: lanes.take(adapter, RULES, Size(1, 10, 5)), range(2)))
    assert found[0] is not found[1]


def test_lanes_of_weights_that_the_model_has_left_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_for(*tiny_llava())
    monkeypatch.setattr(Lanes, "usable", lambda *_: True)
    lanes, left = Lanes(), SimpleNamespace(fits=lambda *_: True, valid=False)
    lanes.give(adapter, left)  # type: ignore[arg-type]
    monkeypatch.setattr("mmattn.decoding.fast.lane.Lane", lambda *_: "another")
    assert lanes.take(adapter, RULES, Size(1, 10, 5)) == "another"
    assert not lanes._kept[adapter.model]


def test_whoever_reads_or_edits_around_a_call_keeps_it_from_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapter_for(*tiny_llava())
    monkeypatch.setattr(Lanes, "usable", lambda *_: True)
    lanes, kept = Lanes(), SimpleNamespace(fits=lambda *_: True, valid=True, prefill=print)
    lanes.give(adapter, kept)  # type: ignore[arg-type]
    with adapter.session(RowCapture(torch.full((1, 1), -1))):
        assert lanes.prefill(adapter) is None
        assert lanes.take(adapter, RULES, Size(1, 10, 5)) is None
    assert lanes.prefill(adapter) is not None
    assert lanes.take(adapter, RULES, Size(1, 10, 5)) is kept


def test_our_kernels_run_on_the_models_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    def entering(chosen: torch.device) -> Any:
        entered.append(chosen)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", entering)
    for name in ("cuda:1", "cpu"):
        with current(torch.device(name)):
            pass
    assert entered == [torch.device("cuda:1")]
    monkeypatch.setattr(engine, "current", entering)
    mmattn.wrap(*tiny_llava()).generate(Image.effect_noise((56, 56), 80).convert("RGB"), "what", max_new_tokens=1)
    assert entered == [torch.device("cuda:1"), torch.device("cpu")]


@pytest.mark.parametrize(
    ("programs", "slots", "parts"),
    [(32, 704, 11), (64, 704, 6), (256, 3072, 1), (2048, 704, 1), (4, 1472, 23), (4, 9000, 32)],
)
def test_attention_is_split_into_what_runs_at_once(
    programs: int, slots: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from mmattn.decoding.fast.blocks import splits

    chip = SimpleNamespace(multi_processor_count=132, shared_memory_per_multiprocessor=233_472)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: chip)
    assert splits(programs, slots, torch.device("cuda")) == parts


def test_graphs_of_prefills_are_few_and_a_failure_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from mmattn.decoding.fast import captured
    from mmattn.decoding.fast.rewriting import Rewriting

    adapter = adapter_for(*tiny_llava())
    parts = take_apart(adapter)
    keys, values = (torch.empty(3, 2, 2, 512, 12) for _ in range(2))
    rewriting = Rewriting((), ("plain",), 3, 4, 2, 512, parts.device)
    lane = captured.Prefills(parts, keys, values, rewriting)
    stood, plain, graphs = [], [], []

    class Still:
        """In place of prompts."""

        def __init__(self, _parts: Any, _attention: Any, batch: Embedded, *_: Any, **__: Any) -> None:
            stood.append(batch.embeds.shape[1])

        def inputs(self) -> list[torch.Tensor]:
            return []

        def run(self) -> torch.Tensor:
            return torch.zeros(1, 48)

    def aside(*_: Any, **__: Any) -> torch.Tensor:
        plain.append(1)
        return torch.zeros(1, 48)

    monkeypatch.setattr(captured, "Prompts", Still)
    monkeypatch.setattr(captured, "prefill", aside)
    monkeypatch.setattr(captured.Captured, "capture", lambda *_: graphs.append(stood[-1]))

    def read(width: int, cache: SharedCache | None = None) -> None:
        columns = Columns.of_sequence(torch.zeros(1, width, dtype=torch.bool))
        mask = torch.ones(1, width, dtype=torch.long)
        batch = Embedded(torch.zeros(1, width, 48), mask, torch.arange(width)[None], columns)
        mine = lane.cache(1) if cache is None else cache
        with adapter.session() as session:
            lane.run(adapter, batch, mine, session)

    for width in (64, 60, 65, 1, 130, 200):
        read(width)
    assert stood == [64, 64, 128, 64, 192, 256]
    assert graphs == [64, 128, 192, 256]
    for width in (300, 64, 70):  # drive out 128, which was used before 64, and 192
        read(width)
    assert graphs[4:] == [320, 128]
    for width in (130, 200, 300, 70):  # the last of these is missed for the third time
        read(width)
    assert graphs[6:] == [192, 256, 320]
    assert not plain
    read(64, SharedCache(3))  # another's
    read(2049)
    assert len(plain) == 2

    def fail(*_: Any) -> None:
        raise RuntimeError("no graph today")

    monkeypatch.setattr(captured.Captured, "capture", fail)
    with pytest.warns(UserWarning, match="no graph today"):
        read(500)
    read(500)
    assert len(plain) == 3


@pytest.mark.parametrize(("rows", "kept", "in_turn"), [(8, (0, 2), [0, 2]), (8, (), []), (7, (0, 2), [])])
def test_what_finishes_kept_rows_of_many_does_not_overlap(
    rows: int, kept: tuple[int, ...], in_turn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from mmattn.decoding.fast import step as fast
    from mmattn.decoding.fast.keeping import KeptRows

    launched: list[tuple[str, bool, bool]] = []

    class Kernel:
        """In place of a kernel."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, _grid: Any) -> Any:
            return lambda *_, **options: launched.append(
                (self.name, options["OVERLAP"], options.get("launch_pdl", False))
            )

    monkeypatch.setattr(fast, "overlapping", lambda *_: {"OVERLAP": True, "launch_pdl": True})
    monkeypatch.setattr(fast, "kernels", SimpleNamespace(**{name: Kernel(name) for name in vars(fast.kernels)}))
    parts = take_apart(adapter_for(*tiny_llava()))
    keys, values = (torch.empty(3, rows, 2, 64, 12) for _ in range(2))
    keeping = KeptRows(kept, (1,), 4, rows, 20, parts.device) if kept else None
    fast.DecodeStep(parts, keys, values, 64, kept=keeping).run()
    joined = [overlap for name, overlap, _ in launched if name == "join_parts"]
    assert [layer for layer, overlap in enumerate(joined) if not overlap] == in_turn
    assert len(joined) == 3
    assert all(overlap for name, overlap, _ in launched if name != "join_parts")
    # One that starts early must wait, and the other way round.
    assert all(overlap is early for _, overlap, early in launched)
