"""Measure a saved model the ordinary way: AutoProcessor, AutoModelForImageTextToText, greedy decoding."""

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmattn.scenes import dataset
from mmattn.scenes.catalog import CATEGORIES, article

ASK = "Is there {a} in the image? Please answer this question with one word."
DESCRIBE = "Please help me describe the image in detail."


@dataclass
class Picture:
    """A picture with what is annotated in it: categories in listing order, and boxes XYXY of each."""

    image: Image.Image
    part: str
    boxes: dict[str, list[tuple[float, float, float, float]]] = field(default_factory=dict)


def load(split: str, count: int, root: str | None) -> list[Picture]:
    """A split in memory."""
    scenes = dataset(split, root=root, count=count)
    data = json.loads(scenes.instances.read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    pictures = {}
    for record in data["images"]:
        with Image.open(scenes.images / record["file_name"]) as image:
            pictures[record["id"]] = Picture(image.convert("RGB"), record["part"])
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        pictures[a["image_id"]].boxes.setdefault(names[a["category_id"]], []).append((x, y, x + w, y + h))
    return list(pictures.values())


def pope(pictures: Sequence[Picture], kind: str, seed: int = 0) -> list[tuple[int, str, bool]]:
    """Three questions about present and three about absent objects a picture: (picture, category, truth)."""
    draw = random.Random(seed)
    everything = [c.name for c in CATEGORIES]
    common = [name for name, _ in Counter(n for p in pictures for n in p.boxes).most_common()]
    together = Counter((a, b) for p in pictures for a in p.boxes for b in p.boxes if a != b)
    rows = []
    for number, picture in enumerate(pictures):
        listed = list(picture.boxes)[:3]
        absent = [name for name in everything if name not in picture.boxes]
        taken: list[str] = []
        for name in listed:
            rows.append((number, name, True))
            left = [other for other in absent if other not in taken]
            if kind == "random":
                other = draw.choice(left)
            elif kind == "popular":
                other = next(o for o in common if o in left)
            else:
                other = max(left, key=lambda o: together[name, o])
            taken.append(other)
            rows.append((number, other, False))
    return rows


class Subject:
    """The model under test."""

    def __init__(self, folder: str, device: str, batch: int) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.device, self.batch = device, batch

    def inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Any:
        """A left-padded batch through the chat template; without one, the question is the prompt."""
        texts = list(questions)
        if getattr(self.processor, "chat_template", None):
            parts = [[{"type": "image"}, {"type": "text", "text": question}] for question in questions]
            turns = [[{"role": "user", "content": content}] for content in parts]
            texts = [self.processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
        return self.processor(images=list(images), text=texts, return_tensors="pt", padding=True).to(self.device)

    @torch.no_grad()
    def answer(self, jobs: Sequence[tuple[Image.Image, str]], tokens: int) -> Iterator[str]:
        """Greedy answers."""
        for start in range(0, len(jobs), self.batch):
            chunk = jobs[start : start + self.batch]
            inputs = self.inputs([image for image, _ in chunk], [question for _, question in chunk])
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
            out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
            texts = self.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            yield from (text.strip() for text in texts)


def yes_no(subject: Subject, pictures: Sequence[Picture], kind: str) -> dict[str, Any]:
    """POPE-style figures, overall and per part."""
    rows = pope(pictures, kind)
    jobs = [(pictures[i].image, ASK.format(a=article(name))) for i, name, _ in rows]
    said = [text.lower().startswith("yes") for text in subject.answer(jobs, 3)]
    figures: dict[str, Any] = {}
    for part in ("all", "typical", "broken"):
        hits = [(t, s) for (i, _, t), s in zip(rows, said, strict=True) if part in ("all", pictures[i].part)]
        absent, present = [s for t, s in hits if not t], [s for t, s in hits if t]
        if not hits:
            continue
        figures[part] = {
            "accuracy": round(sum(t == s for t, s in hits) / len(hits), 4),
            "false_yes": round(sum(absent) / len(absent), 4),
            "true_yes": round(sum(present) / len(present), 4),
            "questions": len(hits),
        }
    return figures


def mentioned(text: str) -> set[str]:
    """Categories a caption names, longest names first so that "teddy bear" is no bear."""
    found, rest = set(), f" {text.lower()} "
    forms = sorted(((w, c.name) for c in CATEGORIES for w in {c.name, c.plural}), key=lambda f: -len(f[0]))
    for words, name in forms:
        rest, hits = re.subn(rf"(?<![a-z]){re.escape(words)}(?![a-z])", " ", rest)
        if hits:
            found.add(name)
    return found


def captioning(subject: Subject, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Recall and hallucination of captions, overall and per part, with samples."""
    texts = list(subject.answer([(p.image, DESCRIBE) for p in pictures], 96))
    figures: dict[str, Any] = {}
    for part in ("all", "typical", "broken"):
        rows = [(mentioned(t), set(p.boxes)) for t, p in zip(texts, pictures, strict=True) if part in ("all", p.part)]
        named, wrong = sum(len(m) for m, _ in rows), sum(len(m - b) for m, b in rows)
        figures[part] = {
            "recall": round(sum(len(m & b) for m, b in rows) / sum(len(b) for _, b in rows), 4),
            "chair_i": round(wrong / max(named, 1), 4),
            "chair_s": round(sum(bool(m - b) for m, b in rows) / len(rows), 4),
        }
    lengths = [len(subject.processor.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    return figures | {"mean_tokens": round(sum(lengths) / len(lengths), 1), "samples": texts[:6]}


def _rows(subject: Subject, ids: torch.Tensor, name: str) -> tuple[int, list[int]]:
    """Positions of the last prompt token and of the asked object's words."""
    tokens = ids.tolist()
    words = [subject.processor.tokenizer(f" {name}", add_special_tokens=False)["input_ids"]][0]
    start = max(i for i in range(len(tokens) - len(words) + 1) if tokens[i : i + len(words)] == words)
    return len(tokens) - 1, list(range(start, start + len(words)))


def _maps(subject: Subject, inputs: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Attention to the cells of the picture (B, layers, heads, cells), per kind of row: the decoder's at the prompt's
    last token and at the object's words; with a Q-Former, its cross-attention, the mean of all queries.
    """
    if "qformer_input_ids" in inputs:
        keys = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
        out = subject.model.get_image_features(**{key: inputs[key] for key in keys}, output_attentions=True)
        cross = torch.stack(out.qformer_outputs.cross_attentions, 1).float()
        return {"queries": cross.mean(3)[..., 1:]}  # without the class token
    maps = torch.stack(subject.model(**inputs, output_attentions=True).attentions, 1).float()
    kinds: dict[str, list[torch.Tensor]] = {"last": [], "object": []}
    for ids, each, name in zip(inputs["input_ids"], maps, names, strict=True):
        columns = (ids == subject.model.config.image_token_id).nonzero().flatten()
        last, words = _rows(subject, ids, name)
        kinds["last"].append(each[:, :, last][..., columns])
        kinds["object"].append(each[:, :, words][..., columns].mean(2))
    return {kind: torch.stack(rows) for kind, rows in kinds.items()}


def _inside(picture: Picture, name: str, top: torch.Tensor, side: int) -> torch.Tensor:
    """Whether the centres of cells ``top`` (any shape) of a side x side grid lie in a box of the object, as float."""
    x = (top % side + 0.5) * picture.image.width / side
    y = (top // side + 0.5) * picture.image.height / side
    inside = torch.zeros_like(top, dtype=torch.bool)
    for left, upper, right, lower in picture.boxes[name]:
        inside |= (x >= left) & (x < right) & (y >= upper) & (y < lower)
    return inside.float()


@torch.no_grad()
def peaks(subject: Subject, pictures: Sequence[Picture]) -> dict[str, Any]:
    """For each row kind, the share (layers, heads) of present-object questions whose peak lies in a box of it.

    The peak is the centre of the image token with the most attention, in pixels of the original picture.
    """
    subject.model.set_attn_implementation("eager")
    jobs = [(p, name) for p in pictures for name in list(p.boxes)[:3]]
    hits: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(jobs), subject.batch):
        chunk = jobs[start : start + subject.batch]
        inputs = subject.inputs([p.image for p, _ in chunk], [ASK.format(a=article(n)) for _, n in chunk])
        inputs["pixel_values"] = inputs["pixel_values"].to(subject.model.dtype)
        for kind, maps in _maps(subject, inputs, [name for _, name in chunk]).items():
            side, top = round(maps.shape[-1] ** 0.5), maps.argmax(-1).cpu()
            found = [_inside(p, name, row, side) for (p, name), row in zip(chunk, top, strict=True)]
            hits.setdefault(kind, []).extend(found)
    subject.model.set_attn_implementation("sdpa")
    return {kind: torch.stack(values).mean(0) for kind, values in hits.items()}


def grounding(subject: Subject, tune: Sequence[Picture], val: Sequence[Picture]) -> dict[str, Any]:
    """Choose the head on tune, report it on val."""
    chosen, measured = peaks(subject, tune), peaks(subject, val)
    figures: dict[str, Any] = {}
    for kind, shares in chosen.items():
        heads = shares.shape[1]
        best = int(shares.argmax())
        layer, head = best // heads, best % heads
        figures[kind] = {
            "layer": layer, "head": head, "tune": round(float(shares[layer, head]), 4),
            "val": round(float(measured[kind][layer, head]), 4),
            "all_heads_val": [[round(v, 3) for v in row] for row in measured[kind].tolist()],
        }  # fmt: skip
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--tune-count", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--root", default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    times = [time.time()]
    val, tune = load("val", args.count, args.root), load("tune", args.tune_count, args.root)
    subject = Subject(args.model, args.device, args.batch)
    times.append(time.time())
    report: dict[str, Any] = {"count": args.count, "device": args.device}
    for kind in ("random", "popular", "adversarial"):
        report[kind] = yes_no(subject, val, kind)
        print(kind, json.dumps(report[kind]), flush=True)
    times.append(time.time())
    report["captions"] = captioning(subject, val)
    print("captions", json.dumps(report["captions"]), flush=True)
    times.append(time.time())
    report["grounding"] = grounding(subject, tune, val)
    print("grounding", json.dumps(report["grounding"]), flush=True)
    times.append(time.time())
    report["seconds"] = [round(b - a, 1) for a, b in pairwise(times)]
    print("seconds", report["seconds"], flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
