"""A run in parts: processes that `accelerate launch` or `torchrun` started together, and `--shard`s run apart.

A part is the questions about some of the pictures, so that those about one picture stay together. Each but the first
process of a team, and each shard, writes to a run folder of its own inside that of the run.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from mmattn.errors import MmattnError
from mmattn.eval.asking import Task
from mmattn.eval.store import HEAD, SAMPLES, check_settings, read_records
from mmattn.eval.types import Key, Record

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the slowest process may take that much longer than the fastest


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`."""

    number: int = 1
    of: int = 1

    @classmethod
    def read(cls, text: str) -> Part:
        """From "2/4"."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise MmattnError(f"Cannot read the shard {text!r}", 'Write for example "1/4" to "4/4".')
        return cls(int(match[1]), int(match[2]))

    def folder(self, out: Path) -> Path:
        """Where it writes."""
        return out / "shards" / f"{self.number}-of-{self.of}"

    def chosen(self, tasks: Sequence[Task]) -> list[Task]:
        """Its tasks: pictures are dealt out in turn, in the order in which they first appear."""
        places: dict[str, int] = {}
        for task in tasks:
            places.setdefault(str(task.item.path), len(places))
        return [task for task in tasks if places[str(task.item.path)] % self.of == self.number - 1]


@dataclass(frozen=True)
class Team:
    """The processes of one run; by default this one alone."""

    rank: int = 0
    size: int = 1

    @property
    def part(self) -> Part:
        return Part(self.rank + 1, self.size)

    def gather(self, mine: T) -> list[T]:
        """What each process has, in their order, in every process."""
        if self.size == 1:
            return [mine]
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, mine)
        return found


def team() -> Team:
    """The processes that were started together. They meet over gloo: only answers are exchanged, no tensors."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team()
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=PATIENCE)
        atexit.register(distributed.destroy_process_group)
    return Team(distributed.get_rank(), distributed.get_world_size())


def own_device(device: str | None) -> str | None:
    """The device of this process of a team: with several GPUs each takes its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or device not in (None, "cuda"):
        return device
    import torch

    if not torch.cuda.is_available():
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def earlier(out: Path, settings: Mapping[str, Any], strict: bool) -> tuple[list[Record], list[str]]:
    """Answers in a run folder and in those of its parts, and the commits that wrote them.

    `settings` as JSON reads them. A part that belongs to a run with other settings is passed over, if not `strict`.

    Raises:
        MmattnError: the folder belongs to a run with other settings.
    """
    records: dict[Key, Record] = {}
    commits: list[str] = []
    for head in [out / HEAD, *sorted(out.glob(f"shards/*/{HEAD}"))]:
        try:
            if head.is_file():
                commits += check_settings(head, settings)
                found = read_records(head.parent / SAMPLES)[0]
                records |= {record.key: record for record in found if record.status == "done"}
        except MmattnError:
            if strict or head.parent == out:
                raise
    return list(records.values()), commits
