"""`mmattn eval`: benchmarks from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmattn.cli.options import (
    LONGEST,
    AsJson,
    BatchSize,
    Device,
    DeviceMap,
    Dtype,
    Model,
    Seed,
    require_text,
    say,
)
from mmattn.cli.running import STATUS, Job, run
from mmattn.errors import MmattnError, unknown

if TYPE_CHECKING:  # these take seconds to import, and --help needs none of them
    from mmattn.eval import Benchmark, Captions, Instances

app = typer.Typer(no_args_is_help=True, help="Measure hallucination (POPE, CHAIR, or both) and grounding.")

Methods = Annotated[str, typer.Option("--method", help="Comma-separated; the others are compared with the first.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; a run that was cut off continues there.")]
Length = Annotated[int, typer.Option("--max-new-tokens", min=1, max=LONGEST, help="Longest answer in tokens.")]
Annotations = Annotated[Path | None, typer.Option(help="COCO-format instances; by default the bundled scenes.")]
References = Annotated[Path | None, typer.Option("--captions", help="COCO-format reference captions.")]
Images = Annotated[Path | None, typer.Option(help="Folder of the images that --annotations names.")]
Shard = Annotated[
    str | None,
    typer.Option(help='Ask only part "2/4" of the pictures; a run without it puts the parts in --out together.'),
]
Sweep = Annotated[
    list[str] | None, typer.Option(help="Choose a hyper-parameter on tuning pictures: alpha=0,0.5,1. May be repeated.")
]
By = Annotated[str, typer.Option(help="Metric that --sweep chooses by, as results.json names it.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget the answers in the run folder and start over.")]


@app.command(epilog=STATUS)
def pope(
    model: Model = "scenes-llava",
    method: Methods = "greedy",
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    limit: Limit = None,
    out: Out = None,
    max_new_tokens: Length = 8,
    annotations: Annotations = None,
    images: Images = None,
    split: Annotated[
        str | None, typer.Option(help="Comma-separated: random, popular, adversarial; all of them by default.")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="Published POPE file to ask instead (JSON lines).")] = None,
    scorer: Annotated[
        str, typer.Option(help="Rule that reads yes or no: official, opera, vcd, lmms-eval, mitigv; or logits.")
    ] = "official",
    as_json: AsJson = False,
    fresh: Fresh = False,
    shard: Shard = None,
    device_map: DeviceMap = None,
    sweep: Sweep = None,
    by: By = "f1",
) -> None:
    """POPE: yes/no questions about objects that are there and objects that are not."""
    job = Job(model, method, device, dtype, batch_size, seed, out, as_json, fresh, shard, device_map, sweep or [], by)

    def benchmarks(part: str = "val") -> list[Benchmark]:
        if questions is not None:
            _refuse_beside_questions({"--annotations": annotations, "--split": split})
            return [_published(questions, images, scorer, max_new_tokens, limit)]
        data = Data.find(annotations, None, images, captions_needed=False, part=part)
        return _pope(data, _names(split), scorer, max_new_tokens, seed, limit)

    bundled = annotations is None and questions is None
    run("pope", job, benchmarks, by_scores if scorer == "logits" else None, bundled)


@app.command(epilog=STATUS)
def chair(
    model: Model = "scenes-llava",
    method: Methods = "greedy",
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    limit: Limit = None,
    out: Out = None,
    max_new_tokens: Length = 64,
    annotations: Annotations = None,
    captions: References = None,
    images: Images = None,
    prompt: Annotated[str | None, typer.Option(help="What the model is asked for; a description by default.")] = None,
    strict_original: Annotated[
        bool, typer.Option("--strict-original", help="Read captions as the first published script does.")
    ] = False,
    as_json: AsJson = False,
    fresh: Fresh = False,
    shard: Shard = None,
    device_map: DeviceMap = None,
    sweep: Sweep = None,
    by: By = "f1",
) -> None:
    """CHAIR: objects in a caption that are not in the image, beside recall, F1 and length."""
    job = Job(model, method, device, dtype, batch_size, seed, out, as_json, fresh, shard, device_map, sweep or [], by)

    def benchmarks(part: str = "val") -> list[Benchmark]:
        if prompt is not None:
            require_text("prompt", prompt)
        data = Data.find(annotations, captions, images, captions_needed=True, part=part)
        return [_chair(data, prompt, max_new_tokens, seed, limit, strict_original)]

    run("chair", job, benchmarks, bundled=annotations is None)


@app.command(name="all", epilog=STATUS)
def everything(
    model: Model = "scenes-llava",
    method: Methods = "greedy,vcd",
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    limit: Limit = None,
    chair_limit: Annotated[int | None, typer.Option(min=1, help="Images to caption; --limit by default.")] = None,
    out: Out = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=LONGEST, help="Longest caption in tokens.")] = 64,
    annotations: Annotations = None,
    captions: References = None,
    images: Images = None,
    as_json: AsJson = False,
    fresh: Fresh = False,
    shard: Shard = None,
    device_map: DeviceMap = None,
    sweep: Sweep = None,
    by: By = "f1",
) -> None:
    """The three splits of POPE and CHAIR, several methods side by side, and a picture of one question."""
    job = Job(model, method, device, dtype, batch_size, seed, out, as_json, fresh, shard, device_map, sweep or [], by)

    def benchmarks(part: str = "val") -> list[Benchmark]:
        from mmattn.eval import STRATEGIES

        data = Data.find(annotations, captions, images, captions_needed=True, part=part)
        captioned = _chair(data, None, max_new_tokens, seed, chair_limit or limit)
        return [*_pope(data, STRATEGIES, "official", 8, seed, limit), captioned]

    run("all", job, benchmarks, bundled=annotations is None)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
) -> None:
    """Write a run's answers as a folder that `datasets.load_dataset(FOLDER, BENCHMARK)` reads."""
    from mmattn.eval.export import export as write

    say(str(write(run, out)))


@dataclass(frozen=True)
class Data:
    """What is asked about: a folder of images and what is in them."""

    images: Path
    instances: Instances
    captions: Captions | None

    @classmethod
    def find(
        cls,
        annotations: Path | None,
        captions: Path | None,
        images: Path | None,
        *,
        captions_needed: bool,
        part: str = "val",
    ) -> Data:
        """The user's files, or a part of the bundled scenes if none is named."""
        from mmattn.eval import load_captions, load_instances

        if annotations is None:
            if captions is not None or images is not None:
                raise MmattnError(
                    "--captions and --images describe the images of --annotations, which is not given",
                    "Add --annotations FILE, or drop them to use the bundled scenes.",
                )
            from mmattn import scenes

            bundled = scenes.dataset(part)
            annotations, captions, images = bundled.instances, bundled.captions, bundled.images
        elif images is None:
            raise MmattnError("--annotations needs the images it names", "Add --images FOLDER.")
        elif captions_needed and captions is None:
            typer.echo("No --captions: only annotated objects count as being in an image.", err=True)
        require_folder(images)
        references = load_captions(captions) if captions is not None and captions_needed else None
        return cls(images, load_instances(annotations), references)


def _pope(data: Data, splits: Sequence[str], rule: str, longest: int, seed: int, limit: int | None) -> list[Benchmark]:
    from mmattn.eval import Pope, build, scorer

    reader = scorer(rule)
    return [
        Pope(
            split,
            build(data.instances, split, seed),
            data.images,
            instances=data.instances,
            rule=reader,
            max_new_tokens=longest,
            limit=limit,
        )
        for split in splits
    ]


def _published(questions: Path, images: Path | None, rule: str, longest: int, limit: int | None) -> Benchmark:
    from mmattn.eval import Pope, load_questions, scorer

    if images is None:
        raise MmattnError("--questions needs the images it names", "Add --images FOLDER.")
    require_folder(images)
    return Pope(
        questions.stem, load_questions(questions), images, rule=scorer(rule), max_new_tokens=longest, limit=limit
    )


def _chair(
    data: Data, prompt: str | None, longest: int, seed: int, limit: int | None, original: bool = False
) -> Benchmark:
    from mmattn.eval import Chair
    from mmattn.eval.chair import PROMPT

    return Chair(
        data.instances,
        data.captions,
        data.images,
        prompt=prompt or PROMPT,
        max_new_tokens=longest,
        seed=seed,
        limit=limit,
        original=original,
    )


def by_scores(model: Any) -> Any:
    """The model, answering yes or no by the scores of its first token."""
    from mmattn.eval import YES_NO, ByScores

    return ByScores(model, YES_NO)


def _refuse_beside_questions(given: dict[str, object]) -> None:
    for option, value in given.items():
        if value is not None:
            raise MmattnError(
                f"--questions is a list of its own, {option} builds one",
                f"To ask the published list drop {option}; to build one drop --questions.",
            )


def _names(text: str | None) -> list[str]:
    from mmattn.eval import STRATEGIES

    if text is None:
        return list(STRATEGIES)
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in STRATEGIES:
            raise unknown("POPE split", name, STRATEGIES)
    if not names:
        raise MmattnError("No POPE split is named", f"Known: {', '.join(STRATEGIES)}.")
    return names


def require_folder(folder: Path) -> None:
    """Refuse a folder that is not there."""
    if not folder.is_dir():
        raise MmattnError(f"Image folder {folder} does not exist", "Check the path.")
