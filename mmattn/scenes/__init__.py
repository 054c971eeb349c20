"""A small synthetic world with COCO annotations, and a small model trained on it: a test bed, not a benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmattn.scenes.build import SceneSet, dataset
    from mmattn.scenes.gui import ScreenSet, screens

__all__ = ["SceneSet", "ScreenSet", "dataset", "model_path", "screens"]

_MODELS = Path(__file__).parent / "models"


def model_path(name: str = "scenes-llava") -> Path:
    """Folder of a bundled model, in the ordinary layout of Hugging Face or, for scenes-clip, of open_clip.

    Raises:
        ValueError: no bundled model has this name.
    """
    known = sorted(
        path.parent.name for kind in ("config", "open_clip_config") for path in _MODELS.glob(f"*/{kind}.json")
    )
    if name not in known:
        raise ValueError(f"no bundled model {name!r}; there are: {', '.join(known) or 'none'}")
    return _MODELS / name


def __getattr__(name: str) -> Any:
    if name in ("SceneSet", "dataset"):
        from mmattn.scenes import build

        return getattr(build, name)
    if name in ("ScreenSet", "screens"):
        from mmattn.scenes import gui

        return getattr(gui, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
