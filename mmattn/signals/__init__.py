"""What attention tells of an answer, token by token and word by word, and a detector of hallucinations on top of it."""

from mmattn.signals.detector import Detector
from mmattn.signals.guided import Guidance, guided
from mmattn.signals.read import Signals, read
from mmattn.signals.words import Word

__all__ = ["Detector", "Guidance", "Signals", "Word", "guided", "read"]
