"""A run as a folder that `datasets.load_dataset` reads: one configuration per benchmark, one row per answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmattn.errors import MmattnError
from mmattn.eval.report import markdown
from mmattn.eval.store import SAMPLES, read_records, write_atomic
from mmattn.eval.types import Record

COLUMNS = {
    "benchmark": "string",
    "method": "string",
    "id": "string",
    "image": "string",
    "prompt": "string",
    "status": "string",
    "reason": "string",
    "answer": "string",
    "verdict": "string",
    "correct": "bool",
    "finish_reason": "string",
    "token_ids": "int64",
    "counts": "string",
    "details": "string",
    "seconds": "float64",
}
LISTS = ("token_ids",)


def export(run: Path, out: Path) -> Path:
    """Write the answers of a finished run folder to `out`, which must be new or empty.

    `counts` and `details` differ between benchmarks and are JSON texts, so that every row has the same columns.
    """
    results = run / "results.json"
    if not results.is_file():
        raise MmattnError(f"{run} holds no results.json", "Give the folder of a finished run.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MmattnError(f"{out} is not an empty folder", "Name a new one.")
    records = read_records(run / SAMPLES)[0]
    names = list(dict.fromkeys(record.benchmark for record in records))
    (out / "data").mkdir(parents=True, exist_ok=True)
    for name in names:
        rows = (_row(record) for record in records if record.benchmark == name)
        write_atomic(out / "data" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomic(out / "results.json", results.read_text(encoding="utf-8"))
    write_atomic(out / "README.md", _card(names, json.loads(results.read_bytes())))
    return out


def _row(record: Record) -> dict[str, Any]:
    values = {**record.to_json(), "correct": record.details.get("correct")}
    values |= {name: json.dumps(values[name], ensure_ascii=False) for name in ("counts", "details")}
    return {name: values[name] for name in COLUMNS}


def _card(names: Sequence[str], results: dict[str, Any]) -> str:
    """The folder's README: the head that `datasets` reads, and the table."""
    features = [{"name": name, "sequence" if name in LISTS else "dtype": kind} for name, kind in COLUMNS.items()]
    head = {
        "configs": [{"config_name": name, "data_files": f"data/{name}.jsonl"} for name in names],
        "dataset_info": [{"config_name": name, "features": features} for name in names],
    }
    title = f"Answers of {results['model']['model']}: {', '.join(results['methods'])}"
    # JSON is YAML, too
    return f"---\n{json.dumps(head, indent=1)}\n---\n\n# {title}\n\n{markdown(results)}"
