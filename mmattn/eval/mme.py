"""MME: two yes/no questions about each picture, in 14 tasks; right is good, both right is better."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmattn.errors import MmattnError
from mmattn.eval.listed import Entry, ListBenchmark, one_line, rule, with_groups
from mmattn.eval.rows import Fields, Listed, UnusableError, gather, usable
from mmattn.eval.types import Item, Record, Score, Totals, ratio

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
FORM = (
    "The folder has one folder per task, such as existence/, with a picture and a .txt of its name, or one file per "
    "task, such as existence.txt, with lines of picture, question and answer, parted by tabs."
)
SUFFIXES = (".jpg", ".png", ".jpeg")


class Mme(ListBenchmark):
    """MME over the tasks that are there."""

    title = "MME"
    scorer = rule("mme", "1", "MME eval_tool calculation.py")

    def score(self, item: Item, answer: str) -> Score:
        """Verdict yes, no or other, which is always wrong."""
        verdict = read(answer)
        correct = verdict == item.meta["label"]
        return Score(verdict, {"asked": 1.0, "right": float(correct)}, {**item.meta, "correct": correct})

    def join(self, records: Sequence[Record]) -> Sequence[Record]:
        """Pictures with both questions right; all is counted by task."""
        joined = with_groups(records, self.entries, lambda meta: meta["picture"], "pictures")
        return [
            replace(one, counts={f"{one.details['task']} {name}": count for name, count in one.counts.items()})
            for one in joined
        ]

    def metrics(self, totals: Totals) -> dict[str, NDArray[np.float64]]:
        """Per task 100 (accuracy + share of pictures with both right), 200 at most; and sums over tasks."""
        scores = {task: 100 * (acc + both) for task, (acc, both) in self._rates(totals).items()}
        found: dict[str, NDArray[np.float64]] = {}
        for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
            known = [scores[task] for task in tasks if task in scores]
            if known:
                found[f"{name} score"] = np.asarray(sum(known))
        return found | {f"{task} score": score for task, score in scores.items()}

    def extras(self, records: Sequence[Record]) -> dict[str, Any]:
        """Both parts of each score, and which tasks are missing."""
        totals: dict[str, NDArray[np.float64]] = {}
        for record in self.join(records):
            for name, count in record.counts.items():
                totals[name] = totals.get(name, np.zeros(())) + count
        tasks = {
            task: {"acc": float(acc), "acc_plus": float(both)} for task, (acc, both) in self._rates(totals).items()
        }
        missing = [task for task in (*PERCEPTION, *COGNITION) if task not in self._tasks()]
        notes = [f"not all 14 tasks are there, sums lack {', '.join(missing)}"] if missing else []
        return {"tasks": tasks, "notes": notes}

    def answers(self, records: Sequence[Record]) -> dict[str, str]:
        """A file per task with lines of picture, question, gold and answer, as the public script reads them."""
        files: dict[str, str] = {}
        for record in records:
            gold = {"yes": "Yes", "no": "No"}[record.details["label"]]
            columns = (Path(record.image).name, record.prompt, gold, record.answer)
            name = f"{record.details['task']}.txt"
            files[name] = files.get(name, "") + "\t".join(map(one_line, columns)) + "\n"
        return files

    def _tasks(self) -> list[str]:
        return list(dict.fromkeys(entry.meta["task"] for entry in self.entries))

    def _rates(self, totals: Totals) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return {
            task: (
                ratio(totals[f"{task} right"], totals[f"{task} asked"]),
                ratio(totals[f"{task} pictures_right"], totals[f"{task} pictures"]),
            )
            for task in self._tasks()
            if f"{task} pictures" in totals
        }


def read(answer: str) -> str:
    """The public script's rule: "yes" or "no" within the first four letters, else "other"."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def load_mme(path: Path) -> Listed[Entry]:
    """Read MME's folder, in either of its published forms. A picture without exactly two questions is unusable.

    Raises:
        MmattnError: no such folder, or no usable question in it.
    """
    if not path.is_dir():
        raise MmattnError(f"Folder {path} does not exist", FORM)
    digest = hashlib.sha256()
    rows = [row for task in (*PERCEPTION, *COGNITION) for row in _task(path, task, digest)]
    first = gather(path.name, rows, _parse, lambda entry: f"the question {entry.prompt!r} about {entry.image}")
    listed = _paired(first, digest.hexdigest())
    return usable(listed, str(path), FORM)


def _paired(listed: Listed[Entry], digest: str) -> Listed[Entry]:
    counts: dict[str, int] = {}
    for entry in listed.entries:
        counts[entry.image] = counts.get(entry.image, 0) + 1
    entries, places, problems = [], [], list(listed.problems)
    for entry, place in zip(listed.entries, listed.places, strict=True):
        if counts[entry.image] == 2:
            entries.append(entry)
            places.append(place)
        else:
            problems.append(f"{place}: {counts[entry.image]} usable questions about {entry.image}, not 2")
    return Listed(listed.source, digest, tuple(entries), tuple(places), tuple(problems))


def _task(root: Path, task: str, digest: Any) -> Iterator[tuple[str, Any]]:
    """(where, values) of each line of a task."""
    table = root / f"{task}.txt"
    folder = root / task
    texts = [table] if table.is_file() else sorted([*folder.glob("*.txt"), *folder.glob("questions_answers_YN/*.txt")])
    texts = [path for path in texts if "readme" not in path.name.lower()]
    for path in texts:
        raw = path.read_bytes()
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + raw)
        try:
            lines = raw.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            yield path.relative_to(root).as_posix(), UnusableError("not UTF-8 text")
            continue
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path.relative_to(root).as_posix()} line {number}"
                yield where, _columns(root, task, path, line, is_table=path == table)


def _columns(root: Path, task: str, path: Path, line: str, *, is_table: bool) -> Any:
    columns = [column.strip() for column in line.split("\t")]
    if is_table and len(columns) in (3, 4):  # the fourth is an earlier model's answer
        picture, question, answer = columns[:3]
        return {"task": task, "image": _picture(root, task, picture), "question": question, "answer": answer}
    if not is_table and len(columns) == 2:
        return {"task": task, "image": _picture(root, task, path.stem), "question": columns[0], "answer": columns[1]}
    return UnusableError(f"{len(columns)} columns parted by tabs")


def _picture(root: Path, task: str, name: str) -> str:
    """The picture's path below the root; where there is none, the name it should have."""
    names = [name] if Path(name).suffix.lower() in SUFFIXES else [name + suffix for suffix in SUFFIXES]
    for folder in (task, f"{task}/images"):
        for one in names:
            if (root / folder / one).is_file():
                return f"{folder}/{one}"
    return f"{task}/{names[0]}"


def _parse(fields: Fields) -> Entry:
    task, image, question = fields.text("task"), fields.text("image"), fields.text("question")
    meta: Mapping[str, Any] = {"task": task, "picture": image, "label": fields.one_of("answer", ("yes", "no"))}
    return Entry(f"{image} {question}", image, question, meta)
