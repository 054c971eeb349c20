"""A run as a data set: the plain files, and what the `datasets` library makes of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmattn.errors import MmattnError
from mmattn.eval.export import COLUMNS, export
from tests.eval.runs import answers
from tests.eval.test_cli import invoke

NAMES = ("pope-random", "pope-popular", "chair")


def rows_of(undisturbed: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in answers(undisturbed) if line["benchmark"] == name]


def check(row: dict[str, Any], line: dict[str, Any]) -> None:
    assert row.keys() == COLUMNS.keys()
    for name in row.keys() - {"correct", "counts", "details", "seconds"}:
        assert row[name] == line[name]
    assert json.loads(row["counts"]) == line["counts"]
    assert json.loads(row["details"]) == line["details"]
    assert row["correct"] == line["details"].get("correct")


def test_every_answer_is_a_row(undisturbed: Path, tmp_path: Path) -> None:
    result = invoke("export", undisturbed, tmp_path / "out")
    assert result.exit_code == 0, result.output
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    files = {one["config_name"]: one["data_files"] for one in head["configs"]}
    assert tuple(files) == NAMES
    for name, file in files.items():
        rows = [json.loads(line) for line in (tmp_path / "out" / file).read_text().splitlines()]
        for row, line in zip(rows, rows_of(undisturbed, name), strict=True):
            check(row, line)


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None,
    reason="datasets is missing; nothing else needs it: pip install datasets in an environment of its own",
)
def test_datasets_reads_it(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    export(undisturbed, tmp_path / "out")
    for name in NAMES:
        found = datasets.load_dataset(str(tmp_path / "out"), name, cache_dir=str(tmp_path / "cache"))["train"]
        for row, line in zip(found, rows_of(undisturbed, name), strict=True):
            check(row, line)
        assert found.features["correct"].dtype == "bool", "also where there is no right or wrong"


def test_what_cannot_be_exported(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(MmattnError, match=r"no results\.json"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(MmattnError, match="not an empty folder"):
        export(undisturbed, tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "mine"
