"""Finding and loading a model: a bundled name, a local folder, or a hub id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel

from mmattn import scenes
from mmattn.adapters import require_supported
from mmattn.errors import MmattnError, first_line, is_out_of_memory, unknown
from mmattn.signals.detector import Detector

BUNDLED = ("scenes-llava", "scenes-instructblip", "scenes-qwen")
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALLER = "Use dtype='bfloat16' or device_map='auto'."


def load_pretrained(
    name: str,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """The transformers model and processor of `name`, in evaluation mode on its device, and its presets.

    Presets are what `mmattn.json` in a local model folder says, such as which head localises best, and the detectors
    of `detector.json` and `chunk-detector.json`.

    Weights come from safetensors only. See `mmattn.load` for the arguments.

    Raises:
        MmattnError: unknown name, unsupported family, missing files, no such device, or out of memory.
    """
    source, local = _locate(name)
    place = _device(device)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    try:
        # The type alone first: transformers does not even know the models that live outside it.
        kind = PreTrainedConfig.get_config_dict(source, **options)[0].get("model_type")
        if isinstance(kind, str):
            require_supported(kind)
        config = AutoConfig.from_pretrained(source, **options)
        require_supported(config.model_type)
        processor = AutoProcessor.from_pretrained(source, **options)
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=_dtype(dtype, place), use_safetensors=True, **options, **kwargs
        )
    except MmattnError:
        raise
    except Exception as error:  # damaged files make transformers and its libraries raise nearly anything
        remedy = SMALLER if is_out_of_memory(error) else _remedy(local)
        raise MmattnError(f"Cannot load {name} ({_reason(error)})", remedy) from error
    try:
        model = model if "device_map" in kwargs else model.to(place)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        raise MmattnError(f"Cannot place {name} on {place} ({first_line(error)})", SMALLER) from error
    return model.eval(), processor, _known_of(Path(source)) if local else {}


def _locate(name: str) -> tuple[str, bool]:
    if name in BUNDLED:
        return str(scenes.model_path(name)), True
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MmattnError(f"Folder {path} holds no config.json", "Give the folder written by save_pretrained().")
        return str(path), True
    if "/" not in name or path.is_absolute() or name.count("/") > 1:
        near = unknown("model", name, BUNDLED)
        raise MmattnError(near.message, f"{near.remedy} Or give a local folder, or a hub id like org/name.")
    return name, False


def _known_of(folder: Path) -> dict[str, Any]:
    files = {name: folder / f"{name}.json" for name in ("detector", "chunk-detector")}
    return {**_presets(folder), **{name: Detector.load(path) for name, path in files.items() if path.is_file()}}


def _presets(folder: Path) -> dict[str, Any]:
    path = folder / "mmattn.json"
    if not path.is_file():
        return {}
    remedy = "Mend it, or delete it to do without presets."
    try:
        presets = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MmattnError(f"{path} is not JSON ({error})", remedy) from error
    head = presets.get("localisation_head", {}) if isinstance(presets, dict) else None
    places = [head.get("layer"), head.get("head")] if isinstance(head, dict) else []
    if head != {} and not (places and all(type(place) is int and place >= 0 for place in places)):
        raise MmattnError(f'{path} is not like {{"localisation_head": {{"layer": 4, "head": 0}}}}', remedy)
    pairs = presets.get("grounding_heads", {"heads": [[0, 0]]})
    heads = pairs.get("heads") if isinstance(pairs, dict) else None
    if not heads or not isinstance(heads, list) or not all(_is_pair(one) for one in heads):
        raise MmattnError(f'{path} is not like {{"grounding_heads": {{"heads": [[3, 2], [4, 3]]}}}}', remedy)
    return dict(presets)


def _is_pair(value: Any) -> bool:
    """Whether this is [layer, head]."""
    return isinstance(value, list) and len(value) == 2 and all(type(one) is int and one >= 0 for one in value)


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise MmattnError(f"Unknown device {device!r}", 'Use for example "cpu", "cuda" or "cuda:1".') from error
    if place.type == "cpu":
        return place
    usable = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if usable is None or usable.type != place.type:
        other = f' or "{usable.type}"' if usable else ""
        raise MmattnError(f"Device {device!r} is not available on this machine", f'Use "cpu"{other}.')
    if (place.index or 0) >= torch.accelerator.device_count():
        raise MmattnError(f"Device {device!r} does not exist", f"There are {torch.accelerator.device_count()} GPUs.")
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


def _reason(error: Exception) -> str:
    """What an error says; many say little without the name of their type."""
    said = first_line(error)
    return said if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {said}"


def _remedy(local: bool) -> str:
    if local:
        return "The folder must hold config, processor files and safetensors weights, as save_pretrained() writes them."
    return "Check the hub id and the network, or give a local folder; scenes-llava is bundled and needs neither."
