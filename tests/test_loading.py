"""Loading by folder and name, and what is said when it cannot be done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmattn
from mmattn.decoding.registry import METHODS
from mmattn.errors import MmattnError, unknown
from tests.tiny import tiny_llava


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model, processor = tiny_llava()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_a_saved_folder_loads_and_answers_the_same(folder: Path, vlm: mmattn.VLM, pictures: list[Any]) -> None:
    loaded = mmattn.load(str(folder), device="cpu")
    assert loaded.generate(pictures, ["what?"] * 5) == vlm.generate(pictures, ["what?"] * 5)
    description = loaded.describe()
    assert json.loads(json.dumps(description)) == description
    assert description["weights_sha256"] == vlm.describe()["weights_sha256"]
    assert description["dtype"] == "float32"


def test_dtype_is_the_users_choice(folder: Path) -> None:
    assert mmattn.load(str(folder), device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert mmattn.load(str(folder), device="cpu", dtype=torch.float64).model.dtype == torch.float64


def _without(folder: Path, target: Path, name: str) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        if file.name != name:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_presets_of_a_folder_are_read(folder: Path, tmp_path: Path) -> None:
    assert mmattn.load(str(folder)).localisation_head is None
    target = _without(folder, tmp_path / "m", "")
    (target / "mmattn.json").write_text('{"localisation_head": {"layer": 2, "head": 1}}')
    assert mmattn.load(str(target)).localisation_head == (2, 1)
    assert mmattn.load(str(target)).grounding_heads == ()
    (target / "mmattn.json").write_text('{"grounding_heads": {"heads": [[2, 1], [0, 3]]}}')
    assert mmattn.load(str(target)).grounding_heads == ((2, 1), (0, 3))
    (target / "mmattn.json").write_text("{")
    with pytest.raises(MmattnError, match="is not JSON"):
        mmattn.load(str(target))


def test_missing_files_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match=r"holds no config\.json"):
        mmattn.load(str(_without(folder, tmp_path / "a", "config.json")))
    with pytest.raises(MmattnError, match="safetensors"):
        mmattn.load(str(_without(folder, tmp_path / "b", "model.safetensors")))


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    target = _without(folder, tmp_path / "p", "model.safetensors")
    torch.save(tiny_llava()[0].state_dict(), target / "pytorch_model.bin")
    with pytest.raises(MmattnError, match="safetensors"):
        mmattn.load(str(target))


BAD = [
    ({"name": "scenes-lava"}, "Unknown model 'scenes-lava'.*Did you mean scenes-llava.*local folder"),
    ({"name": "/nowhere/at/all"}, "Unknown model"),
    ({"dtype": "float8"}, "Unknown dtype 'float8'"),
    ({"device": "gpu"}, "Unknown device"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_requests(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MmattnError, match=message):
        mmattn.load(**{"name": str(folder), **change})


def test_an_absent_gpu_is_told(folder: Path) -> None:
    with pytest.raises(MmattnError, match=r"not available|does not exist"):
        mmattn.load(str(folder), device="cuda:99")


def test_an_unsupported_family_is_told_before_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(MmattnError, match="'gpt2' are not supported"):
        mmattn.load(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "near"),
    [
        ("qwen", "Qwen2-VL or Qwen2.5-VL"),
        ("minicpmv", "Qwen2.5-VL or LLaVA-NeXT"),
        ("llava_llama", "llava-hf/llava-1.5"),
    ],
)
def test_models_outside_transformers_are_told_the_nearest(tmp_path: Path, kind: str, near: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": {"AutoConfig": "x.Y"}}))
    with pytest.raises(MmattnError, match=f"'{kind}' are not supported. The nearest supported model is {near}"):
        mmattn.load(str(tmp_path))


def test_unknown_names_come_with_near_ones() -> None:
    assert str(unknown("fruit", "aple", ["mango", "apple"])) == (
        "Unknown fruit 'aple'. Did you mean apple? Known: apple, mango."
    )


def test_public_names_resolve() -> None:
    assert {name for name in mmattn.__all__ if getattr(mmattn, name) is None} == set()


def test_every_method_is_at_hand_by_its_class() -> None:
    for kind in METHODS.values():
        assert getattr(mmattn, kind.__name__) is kind
    with pytest.raises(AttributeError, match="Vcd"):
        _ = mmattn.Vcd
    with pytest.raises(AttributeError, match="nonsense"):
        mmattn.nonsense  # noqa: B018


def test_device_map_and_other_arguments_reach_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForImageTextToText

    given: dict[str, Any] = {}
    real = AutoModelForImageTextToText.from_pretrained

    def spy(*arguments: Any, **options: Any) -> Any:
        given.update(options)
        options.pop("quantization_config", None)  # the tiny model stays whole; a real one would be quantised
        return real(*arguments, **options)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", spy)
    loaded = mmattn.load(str(folder), device_map={"": "cpu"}, quantization_config={"load_in_8bit": True})
    assert given["device_map"] == {"": "cpu"}
    assert given["quantization_config"] == {"load_in_8bit": True}
    assert given["use_safetensors"] is True
    assert str(loaded.adapter.device) == "cpu"
    assert loaded.generate(None, "hello", max_new_tokens=2, stop_token_ids=[])[0].finish_reason == "length"
