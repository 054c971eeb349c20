"""What kernels are launched with under Triton's interpreter, and compiling them so for a GPU that is not there.

The interpreter runs Python: it takes what the compiler refuses, such as a name that changes its type within a loop.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

HOPPER = 90
TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int8: "*i8", torch.int32: "*i32", torch.int64: "*i64",
    bool: "i1", int: "i32", float: "fp32",
}  # fmt: skip


@contextmanager
def noted(path: Path) -> Iterator[None]:
    """Writes one launch of each kernel, and of each way to call it, to `path`."""
    from triton.runtime.interpreter import InterpretedFunction

    run, seen = InterpretedFunction.run, {}

    def noting(kernel: Any, *given: Any, **named: Any) -> Any:
        launch = _launch(kernel, given, named)
        way = [(name, one) for name, one in launch["constants"].items() if isinstance(one, bool)]
        seen.setdefault(json.dumps([launch["kernel"], launch["types"], way]), launch)
        return run(kernel, *given, **named)

    InterpretedFunction.run = noting
    try:
        yield
    finally:
        InterpretedFunction.run = run
        path.write_text(json.dumps(list(seen.values())), encoding="utf-8")


def _launch(kernel: Any, given: Any, named: Any) -> dict[str, Any]:
    signature = inspect.signature(kernel.fn)
    own = {name: one for name, one in named.items() if name in signature.parameters}
    options = {name: one for name, one in named.items() if name.startswith("num_")}
    types, constants = {}, {}
    bound = signature.bind(*given, **own)
    bound.apply_defaults()
    for name, value in bound.arguments.items():
        if "constexpr" in str(signature.parameters[name].annotation):
            constants[name] = value
        else:
            types[name] = _type(value)
    return {"kernel": kernel.fn.__name__, "types": types, "constants": constants, "options": options}


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if type(value) in TYPES:
        return TYPES[type(value)]
    return f"tensordesc<{TYPES[value.base.dtype][1:]}{value.block_shape}>"  # as triton.runtime.jit names it


def compiled(launch: dict[str, Any]) -> str:
    """One launch's kernel as assembly for Hopper, where kernels of a step overlap; that it fits the chip is checked."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmattn.decoding.fast import kernels

    kernel = getattr(kernels, launch["kernel"])
    names = [one.name for one in kernel.params]
    constants = {(names.index(name),): name == "OVERLAP" or value for name, value in launch["constants"].items()}
    signature = {name: launch["types"].get(name, "constexpr") for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=launch["options"])
    assert made.asm["cubin"]
    assembly: str = made.asm["ptx"]
    return assembly
