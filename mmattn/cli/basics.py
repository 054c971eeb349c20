"""`mmattn generate`, `attend`, `models` and `methods`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmattn.cli import options
from mmattn.errors import MmattnError

if TYPE_CHECKING:
    from mmattn.signals import Word

ImagePaths = Annotated[list[Path], typer.Argument(help="One picture, or one per prompt.")]
Prompts = Annotated[list[str], typer.Option("--prompt", "-p", help="The question; repeat it for several.")]


models_app = typer.Typer(help="List the models, or check one.")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (generate, attend, methods):
        app.command()(command)
    app.add_typer(models_app, name="models")


def generate(
    images: ImagePaths,
    prompt: Prompts,
    model: options.Model = "scenes-llava",
    method: options.Method = "greedy",
    max_new_tokens: options.MaxNewTokens = 64,
    do_sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the best.")] = False,
    temperature: Annotated[float, typer.Option(help="With --sample.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="With --sample.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="With --sample; 0 keeps all.")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per batch; by default what fits.")] = None,
    seed: options.Seed = 0,
    emphasise: options.Emphasise = None,
    emphasise_box: options.EmphasiseBox = None,
    strength: options.Strength = None,
    by: options.By = None,
    guided: Annotated[
        int, typer.Option(min=0, help="Draw this many continuations at a time; a detector keeps the least risky.")
    ] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Ask questions about pictures: one picture for all prompts, one prompt for all pictures, or pairs."""
    from mmattn.decoding import resolve
    from mmattn.images import open_image
    from mmattn.signals import Guidance

    if guided and (method != "greedy" or do_sample):
        raise MmattnError("--guided draws and chooses by itself", "Leave out --method and --sample.")
    paths, prompts = _pairs(images, prompt)
    for text in prompts:
        options.require_text("prompt", text)
    emphasis = options.emphasis(emphasise, emphasise_box, strength, by, len(prompts))
    chosen = resolve(method)  # tell of bad input before the model is loaded
    pictures = {path: open_image(path) for path in paths}
    vlm = options.load_model(model, device, dtype, trust_remote_code)
    common: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
    shown = [pictures[path] for path in paths]
    if guided:
        common["batch_size"] = batch_size or 16
        answers = vlm.guide(shown, prompts, guidance=Guidance(candidates=guided), **common)
    else:
        drawing: dict[str, Any] = {"do_sample": do_sample, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        answers = vlm.generate(shown, prompts, method=chosen, emphasise=emphasis, **common, **drawing)
    if as_json:
        rows = [
            {"image": str(path), "prompt": text, "text": one.text, "finish_reason": one.finish_reason}
            for path, text, one in zip(paths, prompts, answers, strict=True)
        ]
        settings = {"name": "guided", **asdict(Guidance(candidates=guided))} if guided else chosen.settings()
        options.emit({"model": vlm.describe(), "method": settings, "seed": seed, "answers": rows})
        return
    for path, text, one in zip(paths, prompts, answers, strict=True):
        options.say(one.text if len(answers) == 1 else f"{path}\t{text}\t{one.text}")


def attend(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The question.")],
    answer: Annotated[str | None, typer.Option(help="Read this answer; by default the model's own.")] = None,
    rows: Annotated[str, typer.Option(help="last, prompt, answer, or words of the prompt.")] = "last",
    layer: Annotated[list[int] | None, typer.Option(help="Decoder layers to average.")] = None,
    head: Annotated[list[int] | None, typer.Option(help="Heads to average.")] = None,
    smooth: Annotated[bool, typer.Option(help="Interpolate between cells.")] = False,
    signals: Annotated[
        bool, typer.Option("--signals", help="Tell of each word how much it looks at the picture, and where.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The picture to write; .png unless the name ends otherwise.")] = Path(
        "attention.png"
    ),
    emphasise: options.Emphasise = None,
    emphasise_box: options.EmphasiseBox = None,
    strength: options.Strength = None,
    by: options.By = None,
    model: options.Model = "scenes-llava",
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a picture of where the model looks, in the pixels of the original image.

    Without --layer and --head: the model's localisation head where one is known, else the mean of all.
    """
    from mmattn.grounding import save_overlay
    from mmattn.grounding.attention import describe_rows
    from mmattn.images import open_image

    options.require_text("prompt", prompt)
    if answer:
        options.require_text("answer", answer)
    emphasis = options.emphasis(emphasise, emphasise_box, strength, by)
    picture = open_image(image)
    vlm = options.load_model(model, device, dtype, trust_remote_code)
    said = answer if answer is not None else vlm.generate(picture, prompt, emphasise=emphasis)[0]
    text = said if isinstance(said, str) else said.text
    read = vlm.attend(picture, prompt, said if text else None, rows=rows, emphasise=emphasis)
    if layer is None and head is None and vlm.localisation_head:
        layer, head = [vlm.localisation_head[0]], [vlm.localisation_head[1]]
    heat = read.heatmap(layers=layer, heads=head, smooth=smooth)
    written = save_overlay(out, picture, heat, f"{prompt}\n{text}")
    x, y = read.peak(layers=layer, heads=head)
    if signals and not text:
        raise MmattnError("The model answered nothing, so there are no words", "Give one with --answer.")
    words = vlm.signals(picture, prompt, said).words(vlm.detector) if signals else ()
    if as_json:
        told = {"prompt": prompt, "answer": text, "peak": [x, y], "rows": describe_rows(read), "picture": str(written)}
        more = {"words": [word.to_json() for word in words]} if signals else {}
        options.emit({"model": vlm.describe(), "layers": layer, "heads": head, **told, **more})
        return
    options.say(f"Answer: {text}")
    options.say(f"Strongest at x = {x:.0f}, y = {y:.0f} of {picture.width} x {picture.height} pixels.")
    options.say(f"Written: {written}")
    for line in _word_lines(words):
        options.say(line)


def _word_lines(words: Sequence[Word]) -> Iterator[str]:
    """A table of an answer's words."""
    if words:
        yield f"{'word':16}  on picture  where (x, y)  lookback  moved by picture  probability  risk"
    for one in words:
        back, moved, risk = (
            "-" if value is None else f"{value:.{digits}f}"
            for value, digits in ((one.lookback, 2), (one.divergence, 1), (one.risk, 2))
        )
        where = f"{one.place[0]:.0f}, {one.place[1]:.0f}"
        looked = f"{one.text:16}  {one.image:10.2f}  {where:>12}"
        yield f"{looked}  {back:>8}  {moved:>16}  {one.probability:11.2f}  {risk:>4}"


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: options.AsJson = False) -> None:
    """List the bundled models and the supported families, or check one: `mmattn models check NAME`."""
    if context.invoked_subcommand is not None:
        return
    from mmattn.adapters import ADAPTERS
    from mmattn.loading import BUNDLED

    families = {one.family: list(one.model_types) for one in ADAPTERS}
    if as_json:
        options.emit({"bundled": list(BUNDLED), "families": families})
        return
    options.say(f"Bundled (no download): {', '.join(BUNDLED)}")
    for family, kinds in families.items():
        options.say(f"Family {family}: hub ids and local folders whose config has model_type {' or '.join(kinds)}")


@models_app.command()
def check(
    name: Annotated[str, typer.Argument(help="Bundled name, local folder, or hub id.")],
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Check a model thoroughly: tokens, capture against eager attention, edits, the frame of heat maps.

    Ends with status 1 when something does not hold.
    """
    import dataclasses

    from mmattn.checkup import inspect

    findings = inspect(options.load_model(name, device, dtype, trust_remote_code))
    if as_json:
        options.emit({"model": name, "findings": [dataclasses.asdict(one) for one in findings]})
    for one in [] if as_json else findings:
        word = {True: "holds", False: "FAILS", None: "-"}[one.holds]
        options.say(f"{word:5}  {one.name}: {one.detail}")
    if any(one.holds is False for one in findings):
        raise typer.Exit(1)


def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Only these, with what each hyper-parameter means.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the decoding methods: what they do, cost, and take."""
    import dataclasses

    from mmattn.decoding import methods as listing
    from mmattn.errors import unknown

    known = {one.name: one for one in listing()}
    for name in names or ():
        if name not in known:
            raise unknown("method", name, known)
    chosen = [known[name] for name in names or known]
    if as_json:
        options.emit([dataclasses.asdict(one) for one in chosen])
        return
    for one in chosen:
        kind = "published formula" if one.card.exact else "reconstruction: the paper does not publish the formula"
        options.say(f"{one.name}: {one.card.summary}")
        options.say(f"    source      {one.card.source} ({kind})")
        options.say(f"    formula     {one.card.formula}")
        options.say(f"    cost        {one.card.branches} row(s) per sample and step; extra: {one.card.extra_passes}")
        values = ", ".join(f"{name}={value}" for name, value in one.parameters.items()) or "none"
        options.say(f"    parameters  {values} ({one.card.defaults_from})")
        for name, meaning in one.meanings.items() if names else ():
            options.say(f"      {name}: {meaning}")
        for name, preset in one.card.presets.items():
            options.say(f"    preset      {preset} ({name})")
        options.say(f"    in plain transformers: {one.plain_transformers or 'no'}")


def _pairs(images: list[Path], prompts: list[str]) -> tuple[list[Path], list[str]]:
    """Pictures and prompts side by side; a single one of either goes with all of the other."""
    if len(images) == 1:
        return images * len(prompts), prompts
    if len(prompts) == 1:
        return images, prompts * len(images)
    if len(images) != len(prompts):
        raise MmattnError(
            f"{len(images)} pictures and {len(prompts)} prompts do not pair up", "Give as many of each, or one of one."
        )
    return images, prompts
