"""How the kernels of a step overlap: one may start while the one before it ends (programmatic dependent launch).

A kernel that is launched so waits before it touches anything that the one before it wrote, and before it writes; then
it lets the next one in. Products and attention do so after their sums, when they have no more weights or keys to ask
for. Sooner would be worse: the next one's programs then crowd onto whichever multiprocessors have room. Since nobody
lets the next one in before having waited, whatever is older than the kernel before is there from the beginning; what
an older kernel changes is then read past the nearest cache (".cg"), which nothing has made forget it. That also holds
around a kernel that is launched plainly: it begins when all before it has ended, and lets the next one in by ending.
"""

# Triton reads the functions below as its own language, in which only compile-time constants are annotated.
from __future__ import annotations

import triton
import triton.language as tl

# The instructions are written out here, since Triton 3.4 cannot compile its own functions for them.


@triton.jit
def await_earlier(OVERLAP: tl.constexpr):
    """Until all that earlier kernels wrote is there."""
    if OVERLAP:
        tl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], tl.int32, False, 1)


@triton.jit
def let_next_in(OVERLAP: tl.constexpr):
    """The next kernel may start once every program of this one has come here or ended."""
    if OVERLAP:
        tl.inline_asm_elementwise("griddepcontrol.launch_dependents; // $0", "=r", [], tl.int32, False, 1)
