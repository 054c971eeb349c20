"""Entries of a published file, one by one: what cannot be used is told with its line, and the rest stays usable."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmattn.errors import MmattnError
from mmattn.text import is_text

T = TypeVar("T")
K = TypeVar("K")

LONGEST_FIELD = 2**31 - 1  # of a table that holds whole pictures in a column


class UnusableError(Exception):
    """Why an entry cannot be used, in a few words."""


@dataclass(frozen=True)
class Listed(Generic[T]):
    """The usable entries of a file, and what was wrong with the others.

    Attributes:
        source: the file's name.
        sha256: of its bytes.
        entries: in the order of the file.
        places: where each entry stands, such as "line 3".
        problems: one per unusable entry: "line 3: no usable 'text'".
    """

    source: str
    sha256: str
    entries: tuple[T, ...]
    places: tuple[str, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fields:
    """One entry: `where` it stands, and its values by name, each checked as it is taken."""

    where: str
    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A text that is not blank."""
        value = self.values.get(name)
        if not isinstance(value, str) or not is_text(value) or not value.strip():
            raise UnusableError(f"no usable '{name}'")
        return value

    def whole(self, name: str) -> int:
        """A whole number, or one that is spelt out, as in a table."""
        value = self.values.get(name)
        if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
            return int(value)
        if type(value) is not int:
            raise UnusableError(f"no usable '{name}'")
        return value

    def name(self, name: str) -> str:
        """A number or a text, as text: what files call their entries by."""
        value = self.values.get(name)
        return str(value) if type(value) is int else self.text(name)

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """One of the known words, whatever its capitals."""
        value = self.text(name).strip().lower()
        if value not in known:
            raise UnusableError(f"{name} {self.values[name]!r} is neither {' nor '.join(known)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.values.get(name)
        if not isinstance(value, list) or not value or not all(map(is_text, value)):
            raise UnusableError(f"no usable list '{name}'")
        return tuple(value)


def load(path: Path, parse: Callable[[Fields], T], key: Callable[[T], object], form: str, under: str = "") -> Listed[T]:
    """Read a file of JSON lines, of one JSON list, or a table (.tsv, .csv) with a head line.

    Args:
        path: the file.
        parse: makes an entry, or raises `UnusableError`.
        key: what may occur once; an entry that repeats an earlier one's is unusable.
        form: what an entry looks like, for the error.
        under: where the list stands in a file that is one JSON object.

    Raises:
        MmattnError: the file is missing, is no such file, or has no usable entry.
    """
    if not path.is_file():
        raise MmattnError(f"File {path} does not exist", "Check the path.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MmattnError(f"{path} is not UTF-8 text ({error})", "Download the file again.") from error
    listed = gather(path.name, _rows(path, text, under), parse, key, hashlib.sha256(raw).hexdigest())
    return usable(listed, str(path), form)


def gather(
    source: str,
    rows: Iterable[tuple[str, Any]],
    parse: Callable[[Fields], T],
    key: Callable[[T], object],
    sha256: str = "",
) -> Listed[T]:
    """The usable ones among (where, values); values that are an `UnusableError` are a problem already."""
    entries: list[T] = []
    places: list[str] = []
    problems: list[str] = []
    seen: dict[object, str] = {}
    for where, values in rows:
        try:
            if isinstance(values, UnusableError):
                raise values
            if not isinstance(values, Mapping):
                raise UnusableError("not a JSON object")
            entry = parse(Fields(where, values))
            first = seen.setdefault(key(entry), where)
            if first != where:
                raise UnusableError(f"repeats {key(entry)} of {first}")
        except UnusableError as error:
            problems.append(f"{where}: {error}")
        else:
            entries.append(entry)
            places.append(where)
    return Listed(source, sha256, tuple(entries), tuple(places), tuple(problems))


def usable(listed: Listed[T], path: str, form: str) -> Listed[T]:
    """`listed` itself, unless nothing in it can be used."""
    if listed.entries:
        return listed
    if listed.problems:
        raise MmattnError(f"{path} has no usable entry; {listed.problems[0]}", form)
    raise MmattnError(f"{path} is empty", form)


def strictly(listed: Listed[T], form: str) -> tuple[T, ...]:
    """All entries, where none may be unusable."""
    if listed.problems:
        raise MmattnError(f"{listed.source} {listed.problems[0]}", form)
    return listed.entries


def placed(listed: Listed[T], key: Callable[[T], K]) -> dict[K, str]:
    """Where each entry stands, by its key: "coco_pope.json line 3"."""
    return {key(entry): f"{listed.source} {place}" for entry, place in zip(listed.entries, listed.places, strict=True)}


def rejected(listed: Listed[Any]) -> dict[str, Any]:
    """What a result file says of the entries that could not be used."""
    return {"file": listed.source, "count": len(listed.problems), "entries": list(listed.problems)}


def _rows(path: Path, text: str, under: str) -> Iterator[tuple[str, Any]]:
    if path.suffix.lower() in (".tsv", ".csv"):
        return _table(text, "\t" if path.suffix.lower() == ".tsv" else ",")
    start = text.lstrip()[:1]
    if start == "[" or under:
        return _list(path, text, under)
    return _lines(text)


def _table(text: str, mark: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    head = next(reader, [])
    before = reader.line_num
    for row in reader:
        where, before = f"line {before + 1}", reader.line_num
        if row and len(row) != len(head):
            yield where, UnusableError(f"{len(row)} columns where the head has {len(head)}")
        elif row:
            yield where, dict(zip(head, row, strict=True))


def _list(path: Path, text: str, under: str) -> Iterator[tuple[str, Any]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MmattnError(f"{path} is not valid JSON ({error})", "Download or export the file again.") from error
    if under and isinstance(data, dict):
        data = data.get(under)
    if not isinstance(data, list):
        raise MmattnError(f"{path} holds no list{f' {under!r}' if under else ''}", "Check which kind of file it is.")
    return ((f"entry {number}", values) for number, values in enumerate(data, 1))


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            values = UnusableError(f"not valid JSON ({error})")
        yield f"line {number}", values
