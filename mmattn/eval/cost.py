"""What a method costs: passes of the model, time per token, and memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmattn.eval.types import Record


@contextmanager
def memory() -> Iterator[Callable[[], float]]:
    """Gives a function that tells the most memory, in MiB, that tensors on all GPUs took at once since it began.

    0 without a GPU: what a process takes on a CPU is not told apart by method.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        yield lambda: 0.0
        return
    devices = range(torch.cuda.device_count())
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    yield lambda: round(sum(torch.cuda.max_memory_allocated(device) for device in devices) / 2**20, 1)


def passes(methods: Mapping[str, Any]) -> dict[str, Any]:
    """By label: rows per sample in each decoder call, and what the model computes beyond plain decoding, in words."""
    found = {}
    for label, method in methods.items():
        parts = getattr(method, "parts", (method,))
        extra = [part.card.extra_passes for part in parts if part.card.extra_passes != "none"]
        rows = 1 + sum(branch.decoded for branch in method.branches())
        found[label] = {"rows": rows, "extra_passes": "; ".join(extra) or "none"}
    return found


def spent(records: Sequence[Record]) -> dict[str, Any]:
    """By method: seconds per question and milliseconds per token, of the questions that were asked, and peak memory."""
    found: dict[str, Any] = {}
    for label in dict.fromkeys(record.method for record in records):
        asked = [record for record in records if record.method == label and record.seconds > 0]
        seconds = sum(record.seconds for record in asked)
        # the stop token is computed, too
        tokens = sum(len(record.token_ids) + (record.finish_reason == "stop") for record in asked)
        peak = max((record.peak_mib for record in asked), default=0.0)
        found[label] = {
            "questions": len(asked),
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "ms_per_token": round(1000 * seconds / tokens, 3) if tokens else None,
            "peak_mib": peak or None,
        }
    return found
