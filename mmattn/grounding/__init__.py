"""From attention rows to places in the picture."""

from mmattn.grounding.attention import Attention
from mmattn.grounding.locator import Locator
from mmattn.grounding.maps import Contrast, Heads, Mean, Rollout
from mmattn.grounding.overlay import overlay, save_overlay
from mmattn.grounding.paths import Flow, Relevance
from mmattn.grounding.registry import LOCATORS, locator
from mmattn.grounding.result import Grounding
from mmattn.grounding.tag import Tag

__all__ = [
    "LOCATORS",
    "Attention",
    "Contrast",
    "Flow",
    "Grounding",
    "Heads",
    "Locator",
    "Mean",
    "Relevance",
    "Rollout",
    "Tag",
    "locator",
    "overlay",
    "save_overlay",
]
