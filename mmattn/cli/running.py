"""What every command of `mmattn eval` does with its benchmarks: load, ask, report. Only this layer prints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmattn.cli.options import emit, load_model
from mmattn.cli.sweeping import CURVE, tune
from mmattn.errors import MmattnError, first_line

if TYPE_CHECKING:  # these take seconds to import, and --help needs none of them
    from mmattn.eval import Benchmark
    from mmattn.eval.parts import Part
    from mmattn.eval.runner import Half

INTERRUPTED = 130
INCOMPLETE = 3
STATUS = f"When pictures are missing or damaged, the rest is scored and the exit status is {INCOMPLETE}."


@dataclass(frozen=True)
class Job:
    """The options that all commands share."""

    model: str
    method: str
    device: str | None
    dtype: str | None
    batch_size: int
    seed: int
    out: Path | None
    as_json: bool
    fresh: bool
    shard: str | None
    device_map: str | None
    sweep: list[str]
    by: str

    def load(self) -> Any:
        """The model, on the GPU of this process where several share the work."""
        from mmattn.eval.parts import own_device

        if self.device_map is None:
            return load_model(self.model, own_device(self.device), self.dtype)
        if own_device(None) is not None:
            raise MmattnError(
                "--device-map spreads one model over all GPUs, and each of several processes wants its own",
                "Use one or the other.",
            )
        return load_model(self.model, self.device, self.dtype, device_map=self.device_map)


def run(
    kind: str,
    job: Job,
    benchmarks: Callable[..., list[Benchmark]],
    wrap: Callable[[Any], Any] | None = None,
    bundled: bool = False,
) -> None:
    """Load, evaluate, draw, print. Everything the user can get wrong cheaply is checked before the model loads.

    Where the data are `bundled`, `benchmarks("tune")` are about other pictures.
    """
    from mmattn.decoding import split_methods
    from mmattn.eval.parts import Part, team
    from mmattn.eval.runner import label_methods
    from mmattn.eval.sweep import grid, plan

    out = job.out or Path("runs") / f"{kind}-{Path(job.model).name}"
    asked = benchmarks()
    methods = list(label_methods(split_methods(job.method)).values())
    part = Part.read(job.shard) if job.shard else None
    chosen = plan(methods, grid(job.sweep)) if job.sweep else None
    if chosen and part:
        raise MmattnError("A sweep is no run in shards", "Drop --shard, or use `accelerate launch`.")
    tuning = benchmarks("tune") if chosen and bundled else asked
    halves: tuple[Half | None, Half | None] = ("tune", "held-out") if chosen and not bundled else (None, None)
    model = job.load()
    model = wrap(model) if wrap else model
    try:
        if chosen:
            methods = tune(chosen, job.by, out, lambda some, to: _asked(model, job, tuning, some, to, half=halves[0]))
        results = _asked(model, job, asked, methods, out, part, halves[1])
        if team().rank:
            return
        place = part.folder(out) if part else out
        _keep_report(results, place)
        _draw(model, asked, results, place, place / CURVE if job.sweep else None)
    except KeyboardInterrupt:
        again = "the same command again without --fresh" if job.fresh else "the same command again"
        typer.echo(f"Stopped. Finished answers are kept in {out}; run {again} to continue.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _print(results, place, job.as_json)
    if part:
        typer.echo(f"This is shard {job.shard}. When all are done, run the command without --shard.", err=True)


def _asked(
    model: Any,
    job: Job,
    benchmarks: list[Benchmark],
    methods: list[Any],
    out: Path,
    part: Part | None = None,
    half: Half | None = None,
) -> dict[str, Any]:
    from mmattn.eval.runner import evaluate

    shown = not job.as_json
    how: dict[str, Any] = {"batch_size": job.batch_size, "seed": job.seed, "progress": shown, "fresh": job.fresh}
    return evaluate(model, benchmarks, methods, out, **how, shard=part, half=half)


def _keep_report(results: dict[str, Any], out: Path) -> None:
    from mmattn.eval.further import notes
    from mmattn.eval.report import markdown
    from mmattn.eval.store import write_atomic

    lines = "".join(f"\n{line}\n" for line in notes(results))
    write_atomic(out / "table.md", markdown(results) + lines)


def _draw(model: Any, asked: list[Benchmark], results: dict[str, Any], out: Path, curve: Path | None) -> None:
    """A picture of one question, the plot, and the page with all of it."""
    from mmattn.eval import cases, picture, plot
    from mmattn.eval.page import page
    from mmattn.eval.store import read_records, write_atomic

    records, labels = read_records(out / "samples.jsonl")[0], list(results["methods"])
    head = getattr(model, "localisation_head", None)
    heatmap = {"layers": head[0], "heads": head[1]} if head else None
    chosen = picture.choose(asked, records, labels[0])
    try:
        if chosen is not None:
            picture.draw(model, *chosen, out / "picture.png", heatmap)
    except (MmattnError, RuntimeError, MemoryError) as error:  # the numbers are not lost over an illustration
        typer.echo(f"No picture: {first_line(error)}", err=True)
    drawn = [(case, cases.drawn(model, case, heatmap)) for case in cases.choose(asked, records, labels)]
    sweep = curve.read_bytes() if curve and curve.is_file() else b""
    write_atomic(out / "report.html", page(results, plot.tradeoff(results["metrics"]), drawn, sweep))


def _print(results: dict[str, Any], out: Path, as_json: bool) -> None:
    from rich.console import Console

    from mmattn.eval.further import notes, rejects
    from mmattn.eval.report import failures, table

    if as_json:
        emit(results, indent=1)
    else:
        # a pipe has no width; a table folded to 80 columns is unreadable there
        Console(width=None if sys.stdout.isatty() else 160).print(table(results))
        for line in notes(results):
            typer.echo(line)
    typer.echo(f"Run folder: {out}", err=True)
    problem, unusable = failures(results), rejects(results)
    for line in unusable:
        typer.echo(line, err=True)
    if problem:
        typer.echo(f"{problem} Details: {out / 'samples.jsonl'}.", err=True)
    if problem or unusable:
        typer.echo(f"The run is incomplete, exit status {INCOMPLETE}.", err=True)
        raise typer.Exit(INCOMPLETE)
