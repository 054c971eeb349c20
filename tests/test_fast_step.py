"""The fused decode step against transformers' own modules, on each kind of decoder, by Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launches import compiled

pytest.importorskip("triton")

# What their decoders have that the others have not: nothing, biases, and norms of query and key.
FAMILIES = ["llava", "qwen2.5-vl", "qwen3-vl"]
# What no kernel may do before it has waited for the one before it: read memory, unless it is one of EARLIER, which read
# what is older than that kernel; bring tiles, write, add, and let the next one in.
NOT_BEFORE = ("ld.global", "cp.async", "st.global", "atom.global", "griddepcontrol.launch_dependents")
EARLIER = ("project", "product_onto", "attention")
CODE = """
import sys
from pathlib import Path
from tests import fast_step
from tests.launches import noted
path, parts, *families = sys.argv[1:]
with noted(Path(path)):
    fast_step.main(families, [getattr(fast_step, part) for part in parts.split()])
"""
# Which take about equally long, in a process each: the interpreter is chosen when the kernels are imported.
HALVES = ("answers", "prompts steps")


@dataclass(frozen=True)
class Done:
    """How the processes ended, what they said, and where they left their launches."""

    codes: list[int]
    output: str
    launches: list[Path]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("kernels")
    paths = [folder / f"{number}.json" for number in range(len(HALVES))]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    with ExitStack() as ending:
        processes = []
        for part, path in zip(HALVES, paths, strict=True):
            words = [sys.executable, "-c", CODE, str(path), part, *FAMILIES]
            log = ending.enter_context(path.with_suffix(".log").open("w"))
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
            processes.append(ending.enter_context(process))
            ending.callback(process.kill)
        codes = [process.wait() for process in processes]
    return Done(codes, "".join(path.with_suffix(".log").read_text(encoding="utf-8") for path in paths), paths)


def test_steps_and_answers_equal_those_of_the_modules(done: Done) -> None:
    assert done.codes == [0] * len(HALVES), done.output
    assert done.output.count(" rows: ") == 3 + 2 * (len(FAMILIES) + 1)


def test_kernels_can_be_compiled_as_they_were_launched(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(done.launches[0].parent))
    ways = [one for path in done.launches for one in json.loads(path.read_text(encoding="utf-8"))]
    assert {one["kernel"] for one in ways} == {
        "embed", "product", "project", "product_onto", "gated_product", "rotate_and_store", "attention", "join_parts",
        "keep_rows", "row_scores", "mix_rows", "best_of_part", "take_best",
    }  # fmt: skip
    overlapping = 0
    for one in ways:
        assembly = compiled(one)
        if "OVERLAP" in one["constants"]:
            overlapping += 1
            before, _, after = assembly.partition("griddepcontrol.wait")
            assert "griddepcontrol.launch_dependents" in after, one
            assert not any(word in before for word in NOT_BEFORE[one["kernel"] in EARLIER :]), one
    assert overlapping
