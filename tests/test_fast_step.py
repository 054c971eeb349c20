"""The fused decode step against transformers' own modules, on each kind of decoder, by Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
from tests.fast_step import main
from tests.launches import noted
with noted(Path(sys.argv.pop())):
    main()
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """In a process of its own: the interpreter is chosen when the kernels are imported."""
    path = tmp_path_factory.mktemp("kernels") / "launches.json"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", CODE, *FAMILIES, str(path)]
    return subprocess.run(words, env=environment, capture_output=True, text=True), path


def test_steps_and_answers_equal_those_of_the_modules(done: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    process, _ = done
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("rows") == 3 + 2 * (len(FAMILIES) + 1)


def test_kernels_can_be_compiled_as_they_were_launched(
    done: tuple[subprocess.CompletedProcess[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = done
    monkeypatch.setenv("TRITON_CACHE_DIR", str(path.parent))
    ways = json.loads(path.read_text(encoding="utf-8"))
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
