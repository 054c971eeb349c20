"""Reading and editing rows of attention under the fast kernels of unmodified transformers models."""

from mmattn.attention.capture import RowCapture
from mmattn.attention.edit import Columns, Edit, Site, View
from mmattn.attention.function import attention_forward, rewritten
from mmattn.attention.session import NAME, Session, active, own

__all__ = [
    "NAME", "Columns", "Edit", "RowCapture", "Session", "Site", "View", "active", "attention_forward", "own",
    "rewritten",
]  # fmt: skip
