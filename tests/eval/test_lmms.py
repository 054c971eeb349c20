"""The model plugin inside the released lmms-eval: its own program, a local task, the bundled model."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmattn
from tests.eval.fakes import World

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("lmms_eval") is None,
        reason='lmms-eval is missing; it pins many packages: pip install "mmattn[lmms]" in an environment of its own',
    ),
    pytest.mark.skipif(
        not [one for one in importlib.metadata.entry_points(group="lmms_eval.models") if one.name == "mmattn"],
        reason="this environment holds mmattn without its entry points: install it again",
    ),
]

TASK = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: QUESTIONS
task: pope_local
test_split: test
output_type: generate_until
doc_to_visual: !function local.visual
doc_to_text: !function local.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 12
  temperature: 0
  do_sample: false
process_results: !function local.process
metric_list:
  - metric: pope_accuracy
    aggregation: !function local.accuracy
    higher_is_better: true
"""
LOCAL = """
from PIL import Image
from lmms_eval.tasks.pope.utils import pope_aggregate_accuracy as accuracy
from lmms_eval.tasks.pope.utils import pope_process_results as process


def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def text(doc, settings=None):
    return doc["question"]
"""


@pytest.mark.parametrize("method", ["iava", "vcd(alpha=0.5, beta=0.2)"])
def test_the_released_program_runs_our_model(method: str, world: World, tmp_path: Path) -> None:
    pictures = sorted(world.images.iterdir())[:4]
    words = [(f"Is there a {world.objects[path.name][0]} in the image?", "yes") for path in pictures]
    words += [("Is there a bear in the image?", "no"), ("Please help me describe the image in detail.", "no")] * 2
    lines = [
        {"question_id": str(number), "image": str(pictures[number % 4]), "question": question, "answer": answer,
         "category": "random", "image_source": "world"}
        for number, (question, answer) in enumerate(words)
    ]  # fmt: skip
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pope_local.yaml").write_text(TASK.replace("QUESTIONS", str(questions)))
    (tmp_path / "tasks" / "local.py").write_text(LOCAL)
    command = [
        "-m", "lmms_eval", "--model", "mmattn", "--tasks", "pope_local", "--include_path", tmp_path / "tasks",
        "--model_args", f'pretrained=scenes-llava,method="{method}",dtype=float32', "--device", "cpu",
        "--batch_size", 4, "--log_samples", "--output_path", tmp_path / "out",
    ]  # fmt: skip
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    environment = {**os.environ, **offline, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    samples = [
        json.loads(line)
        for path in (tmp_path / "out").rglob("*_samples_pope_local.jsonl")
        for line in path.read_text().splitlines()
    ]
    said = {one["doc_id"]: one["filtered_resps"] for one in samples}
    own = mmattn.load("scenes-llava", device="cpu", dtype="float32").generate(
        [line["image"] for line in lines], [line["question"] for line in lines], method=method, max_new_tokens=12
    )
    assert len({answer.text for answer in own}) > 1, "they differ"
    assert [said[number] for number in range(len(lines))] == [answer.text for answer in own]
    results = json.loads(next((tmp_path / "out").rglob("*_results.json")).read_text())
    right = [answer.text.lower() == line["answer"] for answer, line in zip(own, lines, strict=True)]
    assert results["results"]["pope_local"]["pope_accuracy,none"] == pytest.approx(sum(right) / len(right))
