"""The folder of one run: settings, one line per answered question, results. Survives a kill at any moment.

- run.json: what the run is; a folder is continued only by a run with the same settings
- samples.jsonl: one record a line, appended and synced in chunks, put in order at the end
- results.json: written last, in one step
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mmattn.errors import MmattnError, first_line
from mmattn.eval.types import Key, Record

# Characters that many programs take for the end of a line; inside JSON they can only be part of a text.
_BREAKS = {number: f"\\u{number:04x}" for number in (0x85, 0x2028, 0x2029)}
SAMPLES = "samples.jsonl"
HEAD = "run.json"
_OTHER = "Choose another folder with --out, or start this one over with --fresh."


class RunFolder:
    """An open run folder. Use as a context: one process at a time may hold it.

    Args:
        path: made if missing.
        settings: what decides the answers; JSON values only.
        commit: of the code that writes now; every commit that ever wrote here is kept.
        fresh: forget earlier answers.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], commit: str | None, *, fresh: bool = False) -> None:
        self.path = path
        self.records: list[Record] = []
        self.commits: list[str] = []
        self.settings = json.loads(json.dumps(settings))
        self._commit = commit
        self._fresh = fresh
        self._lock: IO[bytes] | None = None
        self._samples: IO[bytes] | None = None

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("wb")
        except OSError as error:
            raise MmattnError(
                f"Cannot write to the run folder {self.path} ({error.strerror})", "Choose another with --out."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BlockingIOError as error:
            self._lock.close()
            raise MmattnError(
                f"Another run is writing to {self.path}", "Wait for it, or choose another folder with --out."
            ) from error
        except OSError as error:
            self._lock.close()
            raise MmattnError(
                f"Cannot use the run folder {self.path} ({first_line(error)})", "Choose another with --out."
            ) from error
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in (self._samples, self._lock):
            if handle is not None:
                with suppress(OSError):  # `append` has flushed what counts; what failed there would fail here again
                    handle.close()

    def append(self, records: Iterable[Record]) -> None:
        """Add records; they are on the disk when this returns."""
        assert self._samples is not None, "the folder is not open"
        records = list(records)
        try:
            self._samples.write(b"".join(_line(record) for record in records))
            self._samples.flush()
            os.fsync(self._samples.fileno())
        except OSError as error:
            raise _unwritable(self.path / SAMPLES, error) from error
        self.records.extend(records)

    def credit(self, commits: Iterable[str]) -> None:
        """Note commits that wrote parts of this run elsewhere; the last one stays the one that writes now."""
        others = [one for one in dict.fromkeys(commits) if one not in self.commits]
        if others:
            self.commits = [*others, *self.commits]
            self._write_head()

    def settle(self, order: Iterable[Key]) -> None:
        """Bring the records into an order, so that the file is the same however the run came about."""
        places = {key: place for place, key in enumerate(order)}
        records = sorted(self.records, key=lambda record: places[record.key])
        if records != self.records:
            self.write(SAMPLES, b"".join(map(_line, records)).decode())
            self.records = records

    def write(self, name: str, text: str) -> Path:
        """Write a text file of the folder in one step: it is there whole or not at all."""
        return write_atomic(self.path / name, text)

    def _open(self) -> None:
        samples, head, results = (self.path / name for name in (SAMPLES, HEAD, "results.json"))
        for file in (results, samples, head):
            if file.is_dir():  # results.json is written last: hours of answers later
                raise MmattnError(f"{file} is a folder", "Move it away, or choose another run folder with --out.")
        if self._fresh:
            forget(self.path)
        if samples.exists() and not head.exists():
            raise MmattnError(f"{self.path} holds samples but no run.json, so their settings are unknown", _OTHER)
        if head.exists():
            self.commits = check_settings(head, self.settings)
        if self._commit and self._commit not in self.commits:
            self.commits.append(self._commit)
        self._write_head()
        self.records = _recover(samples)
        self._samples = samples.open("ab")

    def _write_head(self) -> None:
        self.write(HEAD, _pretty({"settings": self.settings, "commits": self.commits}))


def forget(path: Path) -> None:
    """Remove the answers and results of a run folder."""
    for name in ("results.json", SAMPLES, HEAD):
        (path / name).unlink(missing_ok=True)


def check_settings(head: Path, settings: Mapping[str, Any]) -> list[str]:
    """The commits in a `run.json`; MmattnError if it is damaged or of a run with other settings."""
    try:
        found = json.loads(head.read_text(encoding="utf-8"))
        theirs, commits = found["settings"], list(found["commits"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MmattnError(f"{head} is damaged", _OTHER) from error
    changed = _changes(theirs, dict(settings))
    if changed:
        raise MmattnError(f"{head.parent} belongs to a run with other settings ({'; '.join(changed[:3])})", _OTHER)
    return commits


def write_atomic(path: Path, text: str) -> Path:
    """Write through a temporary file in the same folder and a rename."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    return path


def _unwritable(path: Path, error: OSError) -> MmattnError:
    remedy = "Make room or choose a writable folder; answers written before are kept."
    return MmattnError(f"Cannot write {path} ({error.strerror or first_line(error)})", remedy)


def read_records(path: Path) -> tuple[list[Record], int]:
    """Records of a samples file, and how many bytes of it are whole lines.

    A kill can tear the last line only, so an unreadable last line is cut off; one in the middle is an error.
    """
    raw = path.read_bytes() if path.exists() else b""
    lines = raw.split(b"\n")
    lines.pop()  # what follows the last line end: nothing, or a torn line
    records: list[Record] = []
    seen: set[tuple[str, str, str]] = set()
    good = 0
    for number, line in enumerate(lines, 1):
        try:
            record = Record.from_json(json.loads(line))
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            if number == len(lines):
                break
            raise MmattnError(f"{path} line {number} is damaged", _OTHER) from error
        if record.key in seen:
            raise MmattnError(f"{path} line {number} repeats {' '.join(record.key)}", _OTHER)
        seen.add(record.key)
        records.append(record)
        good += len(line) + 1
    return records, good


def _recover(path: Path) -> list[Record]:
    """Cut off a torn line and forget failures, so that they are tried again."""
    records, good = read_records(path)
    kept = [record for record in records if record.status == "done"]
    if len(kept) < len(records):
        write_atomic(path, b"".join(map(_line, kept)).decode())
    elif path.exists() and good < path.stat().st_size:
        os.truncate(path, good)
    return kept


def _line(record: Record) -> bytes:
    text = json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False).translate(_BREAKS)
    return text.encode(errors="backslashreplace") + b"\n"  # half a surrogate pair has no UTF-8, but has an escape


def _pretty(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _changes(old: Any, new: Any, where: str = "") -> list[str]:
    """Where two JSON values differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [c for key in keys for c in _changes(old.get(key), new.get(key), f"{where}.{key}" if where else key)]
    return [] if old == new else [f"{where}: {_short(old)} there, {_short(new)} now"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
