"""Reading and editing rows of attention under the fast kernels of unmodified transformers models."""

from mmattn.attention.capture import RowCapture
from mmattn.attention.edit import Columns, Edit, Site, View
from mmattn.attention.function import attention_forward, may_edit, rewritten
from mmattn.attention.rows import at_once
from mmattn.attention.session import NAME, Session, active, own

__all__ = [
    "NAME", "Columns", "Edit", "RowCapture", "Session", "Site", "View", "active", "at_once", "attention_forward",
    "may_edit", "own", "rewritten",
]  # fmt: skip
