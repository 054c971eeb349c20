"""Triton kernels of prompts and decode steps.

Everything that a step changes lies on the device (`length`, `positions`), so that a captured graph serves every step.
"""

from mmattn.decoding.fast.kernels.attending import attention, join_parts, rotate_and_store
from mmattn.decoding.fast.kernels.choosing import best_of_part, take_best
from mmattn.decoding.fast.kernels.products import embed, gated_product, product, product_onto, project
from mmattn.decoding.fast.kernels.rows import keep_rows, mix_rows, row_scores

__all__ = [
    "attention", "best_of_part", "embed", "gated_product", "join_parts", "keep_rows", "mix_rows", "product",
    "product_onto", "project", "rotate_and_store", "row_scores", "take_best",
]  # fmt: skip
