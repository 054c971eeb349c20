"""The benchmarks that are asked from their published files: how each is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmattn.eval.amber import Amber, load_amber, load_association
from mmattn.eval.hallusion import HallusionBench, load_hallusion
from mmattn.eval.listed import ListBenchmark
from mmattn.eval.mmbench import MmBench, load_mmbench
from mmattn.eval.mme import Mme, load_mme
from mmattn.eval.mmhal import MmHal, load_mmhal
from mmattn.eval.scorers import scorer
from mmattn.eval.textvqa import TextVqa, load_textvqa


@dataclass(frozen=True)
class Source:
    """What the user names: the published file or folder, the folder of pictures, and a rule for yes/no answers."""

    path: Path
    images: Path
    rule: str | None = None


Open = Callable[..., ListBenchmark]


def _mme(source: Source, **options: Any) -> ListBenchmark:
    return Mme(load_mme(source.path), source.images, **options)


def _amber(source: Source, **options: Any) -> ListBenchmark:
    folder = source.path if source.path.is_dir() else source.path.parent.parent
    queries = None if source.path.is_dir() else source.path
    rule = {"rule": scorer(source.rule)} if source.rule else {}
    return Amber(load_amber(folder, queries), source.images, load_association(folder), **rule, **options)


def _hallusion(source: Source, **options: Any) -> ListBenchmark:
    rule = {"rule": scorer(source.rule)} if source.rule else {}
    return HallusionBench(load_hallusion(source.path), source.images, **rule, **options)


def _mmhal(source: Source, **options: Any) -> ListBenchmark:
    return MmHal(load_mmhal(source.path), source.images, **options)


def _textvqa(source: Source, **options: Any) -> ListBenchmark:
    return TextVqa(load_textvqa(source.path), source.images, **options)


def _mmbench(source: Source, **options: Any) -> ListBenchmark:
    return MmBench(load_mmbench(source.path, source.images), source.images, **options)


OPENERS: Mapping[str, Open] = {
    "mme": _mme,
    "amber": _amber,
    "hallusion": _hallusion,
    "mmhal": _mmhal,
    "textvqa": _textvqa,
    "mmbench": _mmbench,
}
