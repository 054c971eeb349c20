"""From attention rows to places in the picture."""

from mmattn.grounding.attention import Attention
from mmattn.grounding.overlay import overlay, save_overlay

__all__ = ["Attention", "overlay", "save_overlay"]
