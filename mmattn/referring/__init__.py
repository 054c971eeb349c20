"""Ask about one place of a picture, which a box, a mask, a point or a scribble shows, without training."""

from mmattn.referring.latent import PRESETS, ControlMLLM, preset
from mmattn.referring.refer import Referred, refer
from mmattn.referring.region import Region

__all__ = ["PRESETS", "ControlMLLM", "Referred", "Region", "preset", "refer"]
