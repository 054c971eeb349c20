"""`mmattn heads seam`: what each head does for right answers, for the method "v-seam"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmattn.cli import options
from mmattn.errors import MmattnError

if TYPE_CHECKING:
    import torch

    from mmattn.decoding.ablation import Asked


def seam(
    model: options.Model = "scenes-llava",
    count: Annotated[int, typer.Option(min=1, help="Pictures to ask about, six yes/no questions each.")] = 100,
    strategy: Annotated[str, typer.Option(help="POPE's absent objects: random, popular or adversarial.")] = "random",
    ablation: Annotated[str, typer.Option(help="What a head gives instead: mean (of the others) or zero.")] = "mean",
    out: Annotated[Path, typer.Option(help="The file of scores; an interrupted run goes on beside it.")] = Path(
        "heads.json"
    ),
    annotations: Annotated[Path | None, typer.Option(help="COCO instances; by default the scenes' tune split.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures that --annotations names.")] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 16,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """Score all heads by how far the right answer's probability falls without them. Report on another set."""
    from rich.progress import track

    from mmattn.decoding.ablation import head_falls

    asked, told = _questions(annotations, images, strategy, count, seed)
    vlm = options.load_model(model, device, dtype)
    if vlm.first_token("Yes") == vlm.first_token("No"):
        raise MmattnError("Yes and No begin with the same token of this model", "Use mmattn.decoding.measure_heads.")
    settings = {"method": "v-seam", "model": vlm.describe(), **told, "ablation": ablation, "questions": len(asked)}
    partial = _Partial(out.with_name(f"{out.name}.part"), settings)
    rest = asked[len(partial.falls) :]
    falls = head_falls(vlm, rest, ablation=ablation, batch_size=batch_size)  # type: ignore[arg-type]
    for fall in track(falls, "Heads", total=len(rest), disable=as_json, transient=True):
        partial.add(fall)
    scores = partial.mean()
    out.write_text(json.dumps({**settings, "scores": scores}, indent=1) + "\n", encoding="utf-8")
    partial.path.unlink()
    ranked = sorted(((one, layer, head) for layer, row in enumerate(scores) for head, one in enumerate(row)))
    use = f"v-seam(scores={str(out)!r})"
    if as_json:
        options.emit({**settings, "scores": scores, "file": str(out), "use": use})
        return
    for one, layer, head in [*ranked[:-6:-1], *ranked[4::-1]]:
        options.say(f"layer {layer:2}  head {head:2}  {one:+.5f}")
    options.say(f"Of {len(asked)} questions on {told['set']}, the five best and the five worst. As a method: {use}")


def _questions(
    annotations: Path | None, images: Path | None, strategy: str, count: int, seed: int
) -> tuple[list[Asked], dict[str, Any]]:
    """Questions with their answers, and what a file says of them."""
    from mmattn.decoding.ablation import Asked
    from mmattn.eval import load_instances
    from mmattn.eval.questions import build

    if (annotations is None) != (images is None):
        raise MmattnError("--annotations and --images go together", "Give both, or neither for the bundled scenes.")
    name = "scenes-tune"
    if annotations is None or images is None:
        from mmattn import scenes

        bundled = scenes.dataset("tune")
        annotations, images = bundled.instances, bundled.images
    else:
        name = annotations.stem
    instances = load_instances(annotations)
    questions = build(instances, strategy, seed, count)
    asked = [Asked(images / one.image, one.text, one.label.capitalize()) for one in questions]
    return asked, {"set": name, "annotations_sha256": instances.sha256, "strategy": strategy, "seed": seed}


class _Partial:
    """Questions done so far, a line each after the settings; a torn last line is not counted."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        head = json.dumps(settings)
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        if lines and lines[0] != head:
            raise MmattnError(f"{path} is of another measurement", "Choose another --out, or remove it.")
        self.falls: list[list[list[float]]] = [json.loads(line) for line in lines[1:]]
        try:
            path.write_text("".join(f"{line}\n" for line in lines or [head]), encoding="utf-8")
        except OSError as error:
            raise MmattnError(f"Cannot write {path} ({error.strerror})", "Choose another --out.") from error

    def add(self, fall: torch.Tensor) -> None:
        """Keep the falls (L, H) of one more question."""
        self.falls.append(fall.tolist())
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.falls[-1]) + "\n")

    def mean(self) -> list[list[float]]:
        """(L, H) over all questions."""
        import torch

        scores: list[list[float]] = torch.tensor(self.falls, dtype=torch.float64).mean(0).tolist()
        return scores
