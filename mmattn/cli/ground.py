"""`mmattn ground`, `mmattn heads` and `mmattn eval ground`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmattn.cli import options
from mmattn.cli.seam import seam
from mmattn.errors import MmattnError, unknown

if TYPE_CHECKING:
    from mmattn.eval.referring import Targets
    from mmattn.eval.variants import Variant
    from mmattn.grounding import Locator

heads_app = typer.Typer(no_args_is_help=True, help="Find the heads that point at things, or that make answers right.")

INCOMPLETE = 3
How = Annotated[
    str,
    typer.Option(
        "--method",
        help='Grounding method, e.g. "tag" or "tag(heads=5)": tag, mean, heads, contrast, rollout, relevance, flow.',
    ),
]
Annotations = Annotated[Path | None, typer.Option(help="File of what to find; by default the bundled scenes.")]
Images = Annotated[Path | None, typer.Option(help="Folder of the pictures that --annotations names.")]
Kind = Annotated[str, typer.Option(help="What --annotations is: screenspot, ocg, mind2web, refcoco or coco.")]


def register(app: typer.Typer, evaluation: typer.Typer) -> None:
    """Add the commands to the program and to `mmattn eval`."""
    app.command()(ground)
    heads_app.command()(seam)
    app.add_typer(heads_app, name="heads")
    evaluation.command(name="ground")(evaluate)


def ground(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    query: Annotated[list[str], typer.Argument(help='What to find, such as "the dog"; several are read at once.')],
    method: How = "tag",
    out: Annotated[Path, typer.Option(help="The picture to write; several queries are numbered.")] = Path("ground.png"),
    model: options.Model = "scenes-llava",
    batch_size: options.BatchSize = 16,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Where in the picture is it, and where to click: heat map, boxes and point from attention."""
    from mmattn.grounding import locator, save_overlay
    from mmattn.images import open_image

    for text in query:
        options.require_text("query", text)
    chosen = locator(method)
    picture = open_image(image)
    vlm = options.load_model(model, device, dtype, trust_remote_code)
    results = []
    for number, found in enumerate(vlm.ground(picture, query, method=chosen, batch_size=batch_size), 1):
        target = out if len(query) == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")
        points = [found.point] if found.point else []
        title = f"{found.query}\n{found.reason}" if found.reason else found.query
        written = save_overlay(target, picture, found.heatmap, title, found.boxes, points)
        results.append({**found.to_json(), "picture": str(written)})
    if as_json:
        options.emit({"model": vlm.describe(), "size": list(picture.size), "results": results})
        return
    for one in results:
        if one["point"] is None:
            options.say(f"{one['query']}: nothing found. {one['reason']}")
        else:
            (x, y), box = one["point"], ", ".join(f"{side:.0f}" for side in one["boxes"][0])
            options.say(f"{one['query']}: click x = {x:.0f}, y = {y:.0f}; box {box}; {len(one['boxes'])} in all")
        options.say(f"Written: {one['picture']}")


@heads_app.command()
def rank(
    model: options.Model = "scenes-llava",
    count: Annotated[int, typer.Option(min=1, help="Pictures to rank by.")] = 100,
    top: Annotated[int, typer.Option(min=1, help="Heads to list.")] = 10,
    tokens: Annotated[str, typer.Option(help="Whose rows: last, query or generated.")] = "last",
    prompt: Annotated[
        str, typer.Option(help='What is asked, with {query}; default: "Where is {query} in the image?"')
    ] = "",
    annotations: Annotations = None,
    images: Images = None,
    kind: Kind = "coco",
    batch_size: options.BatchSize = 16,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """Rank all heads by how often their strongest cell lies in the box of what is asked for.

    On the scenes' tune split unless --annotations names another set; do not report figures on the set that ranks.
    """
    import dataclasses

    from mmattn.eval.grounding import shown_of
    from mmattn.grounding import Heads
    from mmattn.grounding.ranking import rank_heads

    method = Heads(tokens=tokens, prompt=prompt)  # type: ignore[arg-type]
    targets, folder = _targets(annotations, images, kind, "tune", count)
    vlm = options.load_model(model, device, dtype)
    ranked = rank_heads(vlm, shown_of(targets, folder), method, batch_size)[:top]
    chosen = dataclasses.replace(method, chosen=tuple((one.layer, one.head) for one in ranked)).label
    if as_json:
        table = [dataclasses.asdict(one) for one in ranked]
        options.emit({"model": vlm.describe(), "set": targets.name, "heads": table, "method": chosen})
        return
    for one in ranked:
        options.say(f"layer {one.layer:2}  head {one.head:2}  {100 * one.pointing:5.1f} %")
    options.say(f"Of {ranked[0].queries} queries on {targets.name}. As a method: {chosen}")


def evaluate(
    model: options.Model = "scenes-llava",
    method: Annotated[
        str, typer.Option(help='Comma-separated; "heads" alone has its heads chosen on the tune split first.')
    ] = "tag,tag(tokens='last'),mean(tokens='last'),heads,contrast,rollout(tokens='last')",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    screens: Annotated[bool, typer.Option("--screens", help="Generated screens in place of the scenes.")] = False,
    robust: Annotated[
        str | None,
        typer.Option(help='Damage the pictures, too: "all", or kinds with grades 1 to 5, as in "noise,blur-3".'),
    ] = None,
    calibration: Annotated[int, typer.Option(min=1, help="Pictures of the tune split to choose heads on.")] = 100,
    annotations: Annotations = None,
    images: Images = None,
    kind: Kind = "coco",
    out: Annotated[Path | None, typer.Option(help="Run folder; a run that was cut off continues there.")] = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the run folder holds and start over.")] = False,
) -> None:
    """Grounding methods side by side, with chance and the model's own words ("at the top left")."""
    from mmattn.eval.grounding import calibrate, evaluate_grounding
    from mmattn.eval.robustness import evaluate_robustness, markdown
    from mmattn.grounding import Heads

    methods = _methods(method)
    if screens and annotations is not None:
        raise MmattnError("--screens and --annotations name two sets", "Give one of them.")
    variants = _variants(robust) if robust is not None else []
    targets, folder = _screens(limit) if screens else _targets(annotations, images, kind, "val", limit)
    vlm = options.load_model(model, device, dtype)
    chosen_on: dict[str, Any] = {}
    for label, one in methods.items():
        if isinstance(one, Heads) and not one.chosen and annotations is None:
            tuning, pictures = _targets(None, None, kind, "tune", calibration)
            methods[label], chosen_on[label] = calibrate(vlm, tuning, pictures, one, batch_size)
    place = out or Path("runs") / f"{'screens' if screens else 'ground'}-{Path(model).name}"
    settings: dict[str, Any] = {
        "calibration": chosen_on, "batch_size": batch_size, "progress": not as_json and sys.stderr.isatty(),
        "fresh": fresh,
    }  # fmt: skip
    if not variants:
        _show(evaluate_grounding(vlm, targets, folder, methods, place, **settings), as_json)
        return
    found = evaluate_robustness(vlm, targets, folder, methods, place, variants, **settings)
    if as_json:
        options.emit(found, indent=1)
    else:
        options.say(markdown(found) + "Click accuracy, in brackets the difference to clean pictures; percent.")


def _show(results: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    from mmattn.eval.grounding import table
    from mmattn.eval.report import failures

    if as_json:
        options.emit(results, indent=1)
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table(results))
    # Queries of a kind are counted again under its name; tell of each once.
    problem = failures({"samples": {name: results["samples"][name] for name in results["benchmarks"]}})
    if problem:
        typer.echo(f"{problem} The run is incomplete, exit status {INCOMPLETE}.", err=True)
        raise typer.Exit(INCOMPLETE)


def _methods(text: str) -> dict[str, Locator]:
    from mmattn.decoding import split_methods
    from mmattn.grounding import locator

    named: dict[str, Locator] = {}
    for one in map(locator, split_methods(text)):
        if one.label in named:
            raise MmattnError(f"Method {one.label} is given twice", "Name each once.")
        named[one.label] = one
    if not named:
        raise MmattnError("No method is given", "Name at least one, such as tag.")
    return named


def _variants(text: str) -> list[Variant]:
    """All kinds, or those that are named, with a grade or in all grades."""
    from mmattn.eval.variants import GRADES, KINDS, Variant

    named = list(KINDS) if text.strip() == "all" else [one.strip() for one in text.split(",") if one.strip()]
    found: list[Variant] = []
    for one in named:
        kind, _, grade = one.partition("-")
        grades = [int(grade)] if grade.isdigit() else [] if grade else range(1, GRADES + 1)
        if not grades:
            raise MmattnError(f"{one!r} is no kind of damage with its grade", 'Write for example "noise-3".')
        found += [Variant(kind, number) for number in grades]
    if not found:
        raise MmattnError("No kind of damage is named", f"Known: {', '.join(KINDS)}.")
    return list(dict.fromkeys(found))


def _screens(limit: int | None) -> tuple[Targets, Path]:
    """Generated screens with what to find on them, and the folder of the pictures."""
    from mmattn import scenes
    from mmattn.eval.referring import load_targets

    made = scenes.screens()
    return replace(load_targets("screenspot", made.targets), name="screens").first(limit), made.images


def _targets(
    annotations: Path | None, images: Path | None, kind: str, split: str, limit: int | None
) -> tuple[Targets, Path]:
    """The user's set, or single objects of a split of the scenes, and the folder of the pictures."""
    from mmattn.eval import load_instances
    from mmattn.eval.referring import KINDS, load_targets, single_objects

    if kind not in (*KINDS, "coco"):
        raise unknown("kind of file", kind, (*KINDS, "coco"))
    if annotations is None:
        if images is not None:
            raise MmattnError("--images goes with --annotations, which is not given", "Add --annotations FILE.")
        from mmattn import scenes

        bundled = scenes.dataset(split)
        return single_objects(f"scenes-{split}", load_instances(bundled.instances)).first(limit), bundled.images
    if images is None or not images.is_dir():
        raise MmattnError("--annotations needs the folder of its pictures", "Add --images FOLDER.")
    if kind == "coco":
        return single_objects(annotations.stem, load_instances(annotations)).first(limit), images
    return load_targets(kind, annotations).first(limit), images
