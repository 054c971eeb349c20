"""`mmattn detector train` and `mmattn detector score`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmattn.cli import options
from mmattn.errors import MmattnError

if TYPE_CHECKING:
    from mmattn.eval.detection import Mentions
    from mmattn.vlm import VLM

app = typer.Typer(no_args_is_help=True, help="Tell hallucinated object words by the attention of the model.")

Annotations = Annotated[Path | None, typer.Option(help="COCO-format instances; by default the bundled scenes.")]
References = Annotated[Path | None, typer.Option("--captions", help="COCO-format reference captions.")]
Images = Annotated[Path | None, typer.Option(help="Folder of the pictures that --annotations names.")]
Count = Annotated[int, typer.Option(min=2, help="Pictures to caption.")]
Chunk = Annotated[int, typer.Option(min=0, help="Judge runs of so many tokens, for guided decoding; 0: object words.")]
Sampled = Annotated[int, typer.Option(min=0, help="Captions drawn at random beside the greedy one of each picture.")]


@app.command()
def train(
    out: Annotated[
        Path, typer.Option(help="File to write; in the model's folder, detector.json or chunk-detector.json is found.")
    ],
    model: options.Model = "scenes-llava",
    count: Count = 400,
    sampled: Sampled = 1,
    chunk: Chunk = 0,
    annotations: Annotations = None,
    captions: References = None,
    images: Images = None,
    batch_size: options.BatchSize = 16,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """Caption pictures whose objects are known, and learn which words are hallucinated. By default the tune split."""
    from mmattn.eval import detection

    data = Data.find("tune", annotations, captions, images)
    vlm = options.load_model(model, device, dtype)
    mentions = data.mentions(vlm, count, chunks=(chunk,), sampled=sampled, batch_size=batch_size, seed=seed)
    chosen, penalty, tried = detection.choose(mentions)
    told = {"model": vlm.name, "set": data.name, "pictures": mentions.images}
    detector = detection.train(mentions, chosen, penalty, told)
    detector.save(out)
    if as_json:
        told = {"tried": tried, "signals": list(chosen), "penalty": penalty, "written": str(out)}
        options.emit({"model": vlm.describe(), **told, **_size(mentions)})
        return
    for name, value in tried.items():
        options.say(f"{name:28}  AUROC {value:.3f} on the second half of the pictures")
    options.say(f"Written: {out} ({' and '.join(chosen)})")


@app.command()
def score(
    model: options.Model = "scenes-llava",
    detector: Annotated[Path | None, typer.Option(help="What `train` wrote; by default the model's own.")] = None,
    count: Count = 400,
    sampled: Sampled = 1,
    chunk: Chunk = 0,
    annotations: Annotations = None,
    captions: References = None,
    images: Images = None,
    batch_size: options.BatchSize = 16,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """How well a detector, and single numbers, tell hallucinated words: AUROC. By default on the val split."""
    from mmattn.eval import detection
    from mmattn.signals import Detector

    own = Detector.load(detector) if detector else None
    data = Data.find("val", annotations, captions, images)
    vlm = options.load_model(model, device, dtype)
    mentions = data.mentions(vlm, count, chunks=(chunk,), sampled=sampled, batch_size=batch_size, seed=seed)
    used = own or (vlm.chunk_detector if chunk else vlm.detector)
    if used is None:
        raise MmattnError("Nobody trained a detector for this model", "Train one: `mmattn detector train --out FILE`.")
    said = {"detector": detection.risks(used, mentions), **mentions.plain}
    found = {name: detection.score(mentions, one) for name, one in said.items()}
    if as_json:
        options.emit({"model": vlm.describe(), "auroc": {k: v.to_json() for k, v in found.items()}, **_size(mentions)})
        return
    for name, value in found.items():
        spread = "" if value.low is None else f" ({value.low:.3f}..{value.high:.3f})"
        options.say(f"{name:16}  AUROC " + ("-" if value.value is None else f"{value.value:.3f}{spread}"))
    size = _size(mentions)
    what = "runs of tokens" if chunk else "words for objects"
    options.say(f"{size['hallucinated']} of {size['mentions']} {what}, on {size['pictures']} pictures, are wrong.")


def _size(mentions: Mentions) -> dict[str, int]:
    wrong = int(mentions.hallucinated.sum())
    return {"pictures": mentions.images, "mentions": len(mentions.hallucinated), "hallucinated": wrong}


@dataclass(frozen=True)
class Data:
    """Pictures to caption, and what is in them."""

    name: str
    annotations: Path
    captions: Path | None
    images: Path

    @classmethod
    def find(cls, split: str, annotations: Path | None, captions: Path | None, images: Path | None) -> Data:
        """The user's files, or a split of the scenes."""
        if annotations is None:
            from mmattn import scenes

            data = scenes.dataset(split)
            return cls(f"scenes-{split}", data.instances, data.captions, data.images)
        if images is None or not images.is_dir():
            raise MmattnError("--annotations needs the folder of its pictures", "Add --images FOLDER.")
        return cls(annotations.stem, annotations, captions, images)

    def mentions(self, vlm: VLM, count: int, **settings: Any) -> Mentions:
        """The object words of the model's captions of the first `count` pictures."""
        from tqdm import tqdm

        from mmattn.eval import load_captions, load_instances
        from mmattn.eval.chair import Chair
        from mmattn.eval.detection import collect

        references = load_captions(self.captions) if self.captions else None
        chair = Chair(load_instances(self.annotations), references, self.images, limit=count)
        with tqdm(total=len(chair), unit="picture", disable=not sys.stderr.isatty()) as bar:
            return collect(vlm, chair, **settings, on_done=bar.update)[0]
