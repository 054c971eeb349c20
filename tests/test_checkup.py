"""The check of a model: it passes where all is well, and sees what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import mmattn
from mmattn.attention import RowCapture
from mmattn.checkup import glance, inspect
from mmattn.errors import MmattnError
from tests.test_cli import folder, run  # noqa: F401 - a fixture
from tests.tiny import FAMILIES, tiny_llava


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(name: str) -> None:
    vlm = mmattn.wrap(*FAMILIES[name](spread=0.1))
    glance(vlm)
    findings = inspect(vlm)
    assert len(findings) == 5
    assert [one for one in findings if one.holds is False] == []
    assert (findings[-1].holds is None) == vlm.adapter.mixed


@pytest.mark.parametrize("name", ["scenes-llava", "scenes-qwen", "scenes-instructblip"])
def test_the_bundled_models_pass(name: str) -> None:
    assert [one for one in inspect(mmattn.load(name, device="cpu")) if one.holds is False] == []


def test_a_foreign_processor_is_seen() -> None:
    mixed = mmattn.wrap(tiny_llava(size=56)[0], tiny_llava(size=56)[1])
    mixed.processor.num_additional_image_tokens = 3
    with pytest.raises(MmattnError, match="not laid out as the llava family is"):
        glance(mixed)


def test_wrong_rows_are_seen(vlm: mmattn.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RowCapture.store

    def shifted(self: RowCapture, layer: int, weights: torch.Tensor) -> None:
        store(self, layer, weights.roll(1, -1) * 1.01)

    monkeypatch.setattr(RowCapture, "store", shifted)
    assert [one.holds for one in inspect(vlm)] == [True, False, False, True, True]


def test_a_wrong_frame_is_seen(vlm: mmattn.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = vlm.adapter.encode
    monkeypatch.setattr(vlm.adapter, "encode", lambda *given: [one.flip(0) for one in encode(*given)])
    assert inspect(vlm)[-1].holds is False


def test_the_command(folder: Any, capsys: Any, monkeypatch: Any) -> None:  # noqa: F811
    code, out, _ = run(capsys, monkeypatch, "models", "check", folder / "model", "--device", "cpu")
    assert code == 0
    assert out.count("holds  ") == 5
    code, out, _ = run(capsys, monkeypatch, "models", "check", folder / "model", "--device", "cpu", "--json")
    assert len(json.loads(out)["findings"]) == 5
    code, _, err = run(capsys, monkeypatch, "models", "check", "scenes-lava")
    assert code == 2
    assert "Did you mean scenes-llava" in err
