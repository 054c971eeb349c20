"""`mmattn eval mme`, `amber` and the others that are asked from their published files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmattn.cli import eval as evaluation
from mmattn.cli.options import LONGEST, AsJson, BatchSize, Device, DeviceMap, Dtype, Model, Seed
from mmattn.cli.running import STATUS, Job, run
from mmattn.errors import MmattnError

if TYPE_CHECKING:
    from mmattn.eval import Benchmark

HELP = {
    "mme": "MME: perception and cognition in 14 tasks of yes/no pairs. DATA is the folder of the tasks.",
    "amber": "AMBER: descriptions and yes/no questions. DATA is its data folder, or one of its query files.",
    "hallusion": "HallusionBench, the questions with a picture. DATA is HallusionBench.json.",
    "mmhal": "MMHal-Bench: writes the answers for a judge. DATA is response_template.json.",
    "textvqa": "TextVQA: short answers about text in pictures. DATA is TextVQA_0.5.1_val.json.",
    "mmbench": "MMBench: multiple choice. DATA is its .tsv; pictures are unpacked into --images.",
}
INSIDE = ("mme", "mmbench")
"""Those whose pictures come with the data."""
RULED = ("amber", "hallusion")


def register(app: typer.Typer) -> None:
    """Add the commands to `mmattn eval`."""
    for name, text in HELP.items():
        app.command(name=name, help=text, epilog=STATUS)(_command(name))


def _command(name: str) -> Callable[..., None]:
    def command(
        data: Annotated[Path, typer.Argument(help="Published file or folder.")],
        images: Annotated[Path | None, typer.Option(help="Folder of the pictures.")] = None,
        model: Model = "scenes-llava",
        method: evaluation.Methods = "greedy",
        device: Device = None,
        dtype: Dtype = None,
        batch_size: BatchSize = 16,
        seed: Seed = 0,
        limit: evaluation.Limit = None,
        out: evaluation.Out = None,
        max_new_tokens: Annotated[
            int | None, typer.Option(min=1, max=LONGEST, help="Longest answer in tokens; by default the benchmark's.")
        ] = None,
        scorer: Annotated[str | None, typer.Option(help="Rule that reads yes or no, where there is a choice.")] = None,
        as_json: AsJson = False,
        fresh: evaluation.Fresh = False,
        shard: evaluation.Shard = None,
        device_map: DeviceMap = None,
        sweep: evaluation.Sweep = None,
        by: evaluation.By = "f1",
    ) -> None:
        job = Job(
            model, method, device, dtype, batch_size, seed, out, as_json, fresh, shard, device_map, sweep or [], by
        )

        def benchmarks() -> list[Benchmark]:
            from mmattn.eval.published import OPENERS, Source

            if scorer is not None and name not in RULED:
                raise MmattnError(f"{name} has one rule of its own", "Drop --scorer.")
            if scorer == "logits" and name == "amber":
                raise MmattnError("AMBER also asks for descriptions, which are no choice", "Use another --scorer.")
            source = Source(data, _folder(name, data, images), scorer)
            return [OPENERS[name](source, max_new_tokens=max_new_tokens, limit=limit)]

        run(name, job, benchmarks, evaluation.by_scores if scorer == "logits" else None)

    return command


def _folder(name: str, data: Path, images: Path | None) -> Path:
    if images is None and name in INSIDE:
        return data if name == "mme" else data.with_suffix("")
    if images is None:
        raise MmattnError(f"{name} needs the pictures that it asks about", "Add --images FOLDER.")
    if name != "mmbench":
        evaluation.require_folder(images)
    return images
