"""Train scenes-llava from nothing: python -m training.train_llava --out DIR --minutes 18 (one GPU), --tiny on a CPU."""

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mmattn.scenes import rng
from mmattn.scenes.catalog import CATEGORIES
from mmattn.scenes.layout import TRAIN, VAL_BROKEN, VAL_TYPICAL, Layout, sample
from mmattn.scenes.render import Bank, draw_batch
from training.batch import LONG, SHORT, Plan, Truth, coverage, partner_table, patch_labels, questions, truth_of
from training.model import Learner, make_model, preprocess, text_states
from training.processor import make_processor
from training.tables import Tables

SEED, PROBE_SEED = 77_001, 88_001


class World:
    """Draws training material on a device."""

    def __init__(self, tables: Tables, fast: bool) -> None:
        self.tables, self.plan = tables, Plan(tables)
        self.bank = Bank.on(tables.device)
        self.paint = torch.compile(_paint, dynamic=False) if fast else _paint

    def pictures(self, seed: int, start: int, count: int, knobs: Any) -> tuple[Layout, Tensor, Tensor, Truth]:
        """Layout, normalised pixels (B, 3, 168, 168), patch labels (B, 144) and truth of consecutive pictures."""
        layout = sample(seed, torch.arange(start, start + count, device=self.tables.device), knobs)
        drawn, cover = self.paint(layout, self.bank.pixels, self.bank.offsets)
        return layout, preprocess(drawn), patch_labels(layout, cover), truth_of(layout, cover.sum(1), self.bank)


def _paint(layout: Layout, pixels: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    drawn, owner = draw_batch(layout, pixels, offsets)
    return drawn, coverage(owner)


def position_weights(plan: Plan, tables: Tables) -> Tensor:
    """Loss weight of each position (T,): yes/no, where, how many and caption tokens, each kind about 1, 0.5, 0.25, 1
    in all."""
    weights = torch.zeros(plan.length, device=tables.device)
    edges = [plan.start]
    kinds = (
        (SHORT * tables.short.length + LONG * tables.long.length, 1 / (SHORT + LONG)),
        (tables.where.length, 0.1), (tables.count.length, 0.12), (plan.caption, 1 / 25),
    )  # fmt: skip
    for length, weight in kinds:
        weights[edges[-1] : edges[-1] + length] = weight
        edges.append(edges[-1] + length)
    return weights


@torch.no_grad()
def probe(learner: Learner, world: World, count: int) -> dict[str, float]:
    """How often the model says yes, on held-out pictures: to what is present, to anything absent, to a partner."""
    learner.eval()
    tables, plan, device = world.tables, world.plan, world.tables.device
    partner = partner_table(device)
    rates = {}
    for part, knobs in (("typical", VAL_TYPICAL), ("broken", VAL_BROKEN)):
        layout, pixels, _, truth = world.pictures(PROBE_SEED, 0, count, knobs)
        absent = truth.counts == 0
        missing = absent & (partner >= 0) & ~absent[:, partner.clamp(min=0)]
        for kind, among in (("present", ~absent), ("absent", absent), ("partner", missing)):
            order = rng.integers(layout.key, 90, (len(CATEGORIES),), 0, 1 << 20)
            asked = torch.where(among, order, -1).argmax(-1)
            ids = tables.long.ids[0, asked, 0]
            ids = torch.cat([plan.prefix.expand(count, -1), ids.clamp(min=0)], 1)
            positions = torch.arange(ids.shape[1], device=device)
            mask = (positions[None] <= positions[:, None])[None, None]
            embeddings, _ = learner.embed(pixels, ids, plan.image_start)
            states = text_states(learner.model, embeddings, positions, mask)[:, plan.start :]
            answers = tables.long.answer[0, asked, 0]
            last = answers.long().argmax(-1) - 1
            logits = learner.model.lm_head(states[torch.arange(count, device=device), last]).float()
            no, yes = (int(tables.long.ids[0, 0, reply][tables.long.answer[0, 0, reply]][0]) for reply in (0, 1))
            said = (logits[:, yes] > logits[:, no]).float()
            valid = among.any(-1)
            rates[f"{part}/{kind}"] = round(float(said[valid].mean()), 4) if bool(valid.any()) else float("nan")
    learner.train()
    return rates


def save(learner: Learner, processor: Any, out: Path) -> None:
    """Weights in bf16, configuration and processor, in the Hugging Face layout."""
    out.mkdir(parents=True, exist_ok=True)
    copy = make_model(processor, tiny=learner.model.config.text_config.hidden_size < 64)
    copy.load_state_dict({name: value.detach().cpu() for name, value in learner.model.state_dict().items()})
    copy.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)


def _schedule(progress: float, steps: int, peak: float) -> float:
    warm = min(1.0, (steps + 1) / 300)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def _optimizer(learner: Learner, peak: float, fused: bool) -> torch.optim.AdamW:
    decayed = [p for p in learner.parameters() if p.ndim >= 2]
    plain = [p for p in learner.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=fused)


def _record(
    args: argparse.Namespace,
    learner: Learner,
    log: list[dict[str, Any]],
    step: int,
    seen: int,
    seconds: float,
    with_compiling: float,
) -> dict[str, Any]:
    """What the run was and did, ready for JSON."""
    return {
        "images": seen, "steps": step, "batch": args.batch, "seconds": round(seconds, 1),
        "seconds_with_compiling": round(with_compiling, 1), "images_per_second": round(seen / seconds),
        "lr": args.lr, "patch_weight": args.patch_weight, "seed": args.seed, "init": str(args.init),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "knobs": asdict(TRAIN),
        "log": log, "parameters": sum(p.numel() for p in learner.model.parameters()), "minutes": args.minutes,
    }  # fmt: skip


def train(args: argparse.Namespace) -> dict[str, Any]:
    """The whole run; returns its record."""
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    processor = make_processor()
    tables = Tables(processor.tokenizer, device)
    world = World(tables, fast=cuda)
    model = make_model(processor, args.tiny)
    if args.init:
        model.load_state_dict(
            LlavaForConditionalGeneration.from_pretrained(args.init, dtype=torch.float32).state_dict()
        )
    learner = Learner(model, len(CATEGORIES)).to(device)
    forward = torch.compile(learner, dynamic=False) if cuda else learner
    optimizer = _optimizer(learner, args.lr, cuda)
    plan, weights = world.plan, position_weights(world.plan, tables)
    log: list[dict[str, Any]] = []
    began = clock = time.time()
    step, seen, reported, kept = 0, 0, 0.0, 0.0
    while (progress := (time.time() - clock) / (args.minutes * 60)) < 1 and step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = _schedule(progress, step, args.lr)
        layout, pixels, patches, truth = world.pictures(args.seed, seen, args.batch, TRAIN)
        ids, labels, _ = questions(layout, truth, tables, plan)
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            text, patch, _ = forward(
                pixels, ids, labels, patches, weights, plan.positions, plan.mask, plan.image_start, plan.start
            )
        loss = text + args.patch_weight * patch
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + args.batch
        if step == 3:  # compiling is over
            if cuda:
                torch.cuda.synchronize()
            clock = time.time()
        if time.time() - reported > args.report:
            reported = time.time()
            record = {
                "seconds": round(reported - began), "progress": round(progress, 3), "step": step, "images": seen,
                "text": round(text.item(), 4), "patch": round(patch.item(), 4), **probe(learner, world, args.probe),
            }  # fmt: skip
            log.append(record)
            print(json.dumps(record), flush=True)
        if args.keep and time.time() - kept > args.keep:
            kept = time.time()
            save(learner, processor, args.out / "latest")
    if cuda:
        torch.cuda.synchronize()
    ended = time.time()
    save(learner, processor, args.out / "scenes-llava")
    record = _record(args, learner, log, step, seen, ended - clock, ended - began)
    (args.out / "training.json").write_text(json.dumps(record, indent=1))
    return record


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", help="folder of weights to go on from (with a fresh optimizer)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--minutes", type=float, default=18.0)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--patch-weight", type=float, default=0.5)
    parser.add_argument("--probe", type=int, default=1024)
    parser.add_argument("--report", type=float, default=20.0, help="seconds between log lines")
    parser.add_argument("--keep", type=float, default=0.0, help="seconds between snapshots; 0: none")
    parser.add_argument("--tiny", action="store_true")
    record = train(parser.parse_args())
    print(json.dumps({key: value for key, value in record.items() if key != "log"}), flush=True)


if __name__ == "__main__":
    main()
