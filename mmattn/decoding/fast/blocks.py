"""How the kernels of a decode step are cut (measured on Hopper)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton

from mmattn.decoding.fast.parts import DecoderParts


@dataclass(frozen=True)
class Blocks:
    """How a product is cut: `n` outputs and `k` inputs at a time, for `m` rows; `split` programs share the inputs."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    split: int = 1


# Blocks that keep enough weights on their way to fill the memory bus, for half precision: for a single row, and for
# up to 16, 32 and 64. On the ordinary units two rows take longer than on the tensor cores.
PRODUCT = {
    1: Blocks(1, 2, 2048, 8, 1),
    16: Blocks(16, 64, 128, 4, 4),
    32: Blocks(32, 64, 128, 4, 4),
    64: Blocks(64, 128, 64, 4, 6),
}
# Blocks of a head or less. Where key heads are few, blocks of whole heads would be fewer than multiprocessors.
PROJECT = {
    1: Blocks(1, 2, 2048, 8, 1),
    16: Blocks(16, 128, 128, 8, 4),
    32: Blocks(32, 128, 128, 4, 4),
    64: Blocks(64, 128, 128, 8, 4),
}
PROJECT_FEW = {
    1: Blocks(1, 2, 2048, 8, 1),
    16: Blocks(16, 64, 128, 4, 6),
    32: Blocks(32, 64, 128, 4, 5),
    64: Blocks(64, 64, 128, 4, 4),
}
MANY = 96 * 128  # outputs of the projections that are not few
GATED = {
    1: Blocks(1, 4, 2048, 8, 1),
    16: Blocks(16, 64, 128, 4, 3),
    32: Blocks(32, 64, 64, 4, 4),
    64: Blocks(64, 64, 64, 4, 4),
}
# Of so many outputs that two programs per multiprocessor are not enough to have all of them at once, which a last few
# would make wait: three, each with fewer weights on their way.
GATED_WIDE = {**GATED, 16: Blocks(16, 64, 128, 4, 2), 32: Blocks(32, 64, 64, 4, 3)}
WIDE = 2 * 132 * 64  # outputs of gated products that are not wide
# Their blocks also are the parts in which the sums of squares come, so they are rather large.
ONTO = {
    1: Blocks(1, 4, 1024, 4, 1),
    16: Blocks(16, 64, 128, 4, 5, split=2),
    32: Blocks(32, 64, 128, 4, 5, split=2),
    64: Blocks(64, 64, 128, 4, 5, split=2),
}
# Rows up to which a kernel starts while the one before it ends; more are bound by their arithmetic, too.
OVERLAPPED = 32
# Rows from which on the kernel that finishes what is kept does not overlap: it takes long enough for the next one's
# programs to come too soon.
FINISHED_APART = 8
# Shared memory of one program of `attention` for heads of 128 in half precision, in bytes: smaller heads take half.
ATTENTION_MEMORY = 75_000


def fitted(table: dict[int, Blocks], rows: int, inputs: int, itemsize: int) -> Blocks:
    """The blocks of `table` for this many rows, no wider than the inputs, and narrower for wider numbers.

    Tensor cores take no float32, and the ordinary units not more than 16 inputs of several rows without spilling.
    """
    blocks = table[next((one for one in table if rows <= one), 64)]
    k = 16 if rows > 1 and itemsize > 2 else blocks.k * 2 // itemsize
    return replace(blocks, k=max(min(k, triton.next_power_of_2(inputs)), 16))


def projection(parts: DecoderParts, rows: int) -> Blocks:
    """The blocks of the projection to query, key and value: of a head at most."""
    many = (parts.heads + 2 * parts.groups) * parts.dim >= MANY
    blocks = fitted(PROJECT if many else PROJECT_FEW, rows, parts.hidden, parts.dtype.itemsize)
    return replace(blocks, n=min(blocks.n, triton.next_power_of_2(parts.dim)))


def gating(parts: DecoderParts, rows: int) -> Blocks:
    """The blocks of the gated products."""
    table = GATED_WIDE if parts.inner > WIDE else GATED
    return fitted(table, rows, parts.hidden, parts.dtype.itemsize)


def attention_blocks(parts: DecoderParts, slots: int) -> dict[str, int]:
    """How the attention kernel is cut, over a cache of `slots` slots."""
    return {
        "BLOCK_H": max(16, triton.next_power_of_2(parts.heads // parts.groups)),
        "BLOCK_D": max(16, triton.next_power_of_2(parts.dim)),
        "BLOCK": 64 if slots > 64 else 16,
        "num_warps": 4,
        "num_stages": 2 if parts.dtype == torch.float32 else 3,
    }


def early(rows: int) -> bool:
    """Whether products ask at their beginning for what they need at their end."""
    return 1 < rows <= OVERLAPPED


def finished_apart(rows: int) -> bool:
    """Whether the kernel that finishes what is kept does not overlap with those around it."""
    return rows >= FINISHED_APART


def overlapping(rows: int, device: torch.device) -> dict[str, bool]:
    """How kernels of a step are launched: from Hopper on, one may start while the one before it ends."""
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    if rows <= OVERLAPPED and nvidia and torch.cuda.get_device_capability(device) >= (9, 0):
        return {"OVERLAP": True, "launch_pdl": True}
    return {"OVERLAP": False}


def splits(programs: int, slots: int, device: torch.device) -> int:
    """Parts of a row's keys, so that a small batch, too, keeps the device busy: about as many as run there at once.

    One more would make some wait for the others, with the memory bus half idle.
    """
    if device.type != "cuda":
        return 2
    chip = torch.cuda.get_device_properties(device)
    memory: int = getattr(chip, "shared_memory_per_multiprocessor", 3 * ATTENTION_MEMORY)  # not told by every torch
    at_once = chip.multi_processor_count * max(1, memory // ATTENTION_MEMORY)
    parts: int = min(at_once // programs, -(-slots // 64), 32)
    return max(1, parts)
