"""Finding and loading a model: a bundled name, a local folder, or a hub id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from mmattn import scenes
from mmattn.adapters import require_supported
from mmattn.errors import MmattnError, unknown

BUNDLED = ("scenes-llava", "scenes-instructblip", "scenes-qwen")
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pretrained(
    name: str,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """The transformers model and processor of `name`, in evaluation mode on its device, and its presets.

    Presets are what `mmattn.json` in a local model folder says: "localisation_head", the (layer, head) that points
    best at things.

    Weights come from safetensors only. See `mmattn.load` for the arguments.

    Raises:
        MmattnError: unknown name, unsupported family, missing files, no such device, or out of memory.
    """
    source, local = _locate(name)
    place = _device(device)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        require_supported(config.model_type)
        processor = AutoProcessor.from_pretrained(source, **options)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=_dtype(dtype, place), use_safetensors=True, **options, **kwargs
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise MmattnError(f"Cannot load {name} ({_first_line(error)})", _remedy(local)) from error
    try:
        model = model if "device_map" in kwargs else model.to(place)
    except (torch.OutOfMemoryError, RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise MmattnError(
            f"Cannot place {name} on {place} ({_first_line(error)})", "Use dtype='bfloat16' or device_map='auto'."
        ) from error
    return model.eval(), processor, _presets(Path(source)) if local else {}


def _locate(name: str) -> tuple[str, bool]:
    if name in BUNDLED:
        return str(scenes.model_path(name)), True
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MmattnError(f"Folder {path} holds no config.json", "Give the folder written by save_pretrained().")
        return str(path), True
    if "/" not in name or path.is_absolute() or name.count("/") > 1:
        problem = unknown("model", name, BUNDLED)
        raise MmattnError(problem.message, f"{problem.remedy} Or give a local folder, or a hub id like org/name.")
    return name, False


def _presets(folder: Path) -> dict[str, Any]:
    path = folder / "mmattn.json"
    if not path.is_file():
        return {}
    mend = "Mend it, or delete it to do without presets."
    try:
        presets = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MmattnError(f"{path} is not JSON ({error})", mend) from error
    if not isinstance(presets, dict):
        raise MmattnError(f"{path} holds no JSON object", mend)
    if (head := presets.get("localisation_head")) is not None:
        places = [head.get(word) if isinstance(head, dict) else None for word in ("layer", "head")]
        if not all(type(place) is int and place >= 0 for place in places):
            raise MmattnError(f'{path}: "localisation_head" must be {{"layer": number, "head": number}}', mend)
        presets["localisation_head"] = tuple(places)
    return presets


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise MmattnError(f"Unknown device {device!r}", 'Use for example "cpu", "cuda" or "cuda:1".') from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if place.type == "xpu":
        available["xpu"] = torch.xpu.is_available()
    if not available.get(place.type):
        raise MmattnError(f"Device {device!r} is not available on this machine", 'Use device="cpu".')
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise MmattnError(f"Device {device!r} does not exist", f"There are {torch.cuda.device_count()} GPUs.")
    return place


def _dtype(dtype: str | torch.dtype | None, place: torch.device) -> Any:
    """The CPU computes in float32 (its half precision is slow and rough); a GPU in the checkpoint's own type."""
    if dtype is None:
        return torch.float32 if place.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise MmattnError(f"Unknown dtype {dtype!r}", f"Known: {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _remedy(local: bool) -> str:
    if local:
        return "The folder must hold config, processor files and safetensors weights, as save_pretrained() writes them."
    return "Check the hub id and the network, or give a local folder; scenes-llava is bundled and needs neither."
