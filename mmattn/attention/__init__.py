"""Reading rows of attention under the fast kernels of unmodified transformers models."""

from mmattn.attention.capture import RowCapture
from mmattn.attention.function import row_weights
from mmattn.attention.session import NAME, Session

__all__ = ["NAME", "RowCapture", "Session", "row_weights"]
