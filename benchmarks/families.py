"""Each family at full size with random weights on one GPU: prefill, time per step and memory, with and without capture.

    python -m benchmarks.families --out families.json [--only llava-1.5-7b] [--tiny]

The configurations are those of the published checkpoints; speed and memory do not depend on the weights. Both sides
of a ratio are measured in one process, alternating.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from mmattn.adapters import ADAPTERS, Adapter, ImageLayout, Layout, Pixels, Prepared, Sample, adapter_for
from mmattn.decoding.engine import Options, Request, run
from mmattn.decoding.method import Method
from mmattn.decoding.recorder import Capture
from mmattn.decoding.sampling import Sampling

WORDS = 64  # text tokens of a prompt


def _llama(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096)  # the defaults are those of the 7B model


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip


def llava() -> tuple[Any, Any, Pixels]:
    """llava-hf/llava-1.5-7b-hf."""
    config = LlavaConfig(vision_config=_clip(), text_config=_llama(32064))
    return LlavaForConditionalGeneration, config, Pixels("a", torch.randn(3, 336, 336), (640, 480))


def llava_next() -> tuple[Any, Any, Pixels]:
    """llava-hf/llava-v1.6-vicuna-7b-hf, a picture of four tiles."""
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config = LlavaNextConfig(
        vision_config=_clip(), text_config=_llama(32064), image_grid_pinpoints=pinpoints, image_token_index=32000
    )
    return LlavaNextForConditionalGeneration, config, Pixels("a", torch.randn(5, 3, 336, 336), (640, 640))


def instructblip() -> tuple[Any, Any, Pixels]:
    """Salesforce/instructblip-vicuna-7b."""
    config = InstructBlipConfig(
        text_config=_llama(32001), num_query_tokens=32, image_token_index=32000,
        vision_config={"image_size": 224, "initializer_range": 0.02},
        qformer_config={"vocab_size": 30523, "encoder_hidden_size": 1408},
    )  # fmt: skip
    pixels = Pixels("a", torch.randn(3, 224, 224), (640, 480), words=torch.arange(5, 25))
    return InstructBlipForConditionalGeneration, config, pixels


def qwen2_5() -> tuple[Any, Any, Pixels]:
    """Qwen/Qwen2.5-VL-7B-Instruct, a picture of about 1,000 x 1,000 pixels."""
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    side = 72
    pixels = Pixels("a", torch.randn(side * side, 1176), (1000, 1000), (1, side, side))
    return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(text_config=text, vision_config=vision), pixels


def qwen3() -> tuple[Any, Any, Pixels]:
    """Qwen/Qwen3-VL-8B-Instruct, a picture of about 1,000 x 1,000 pixels."""
    text = {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
        "patch_size": 16, "deepstack_visual_indexes": [8, 16, 24],
    }  # fmt: skip
    side = 64
    pixels = Pixels("a", torch.randn(side * side, 1536), (1000, 1000), (1, side, side))
    return Qwen3VLForConditionalGeneration, Qwen3VLConfig(text_config=text, vision_config=vision), pixels


MODELS: dict[str, Callable[[], tuple[Any, Any, Pixels]]] = {
    "llava-1.5-7b": llava,
    "llava-next-7b": llava_next,
    "instructblip-vicuna-7b": instructblip,
    "qwen2.5-vl-7b": qwen2_5,
    "qwen3-vl-8b": qwen3,
}


def build(name: str, device: str, tiny: bool) -> tuple[Adapter, Pixels]:
    """The model with random bf16 weights, made on the device; `tiny` cuts it to two layers for a rehearsal."""
    kind, config, pixels = MODELS[name]()
    if tiny:
        for part in (config.get_text_config(), config.vision_config):
            part.num_hidden_layers = 2
            if hasattr(part, "depth"):
                part.depth = 2
            if hasattr(part, "layer_types"):
                part.layer_types = part.layer_types[:2]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = kind(config).eval()
    finally:
        torch.set_default_dtype(before)
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2, decode=lambda *_, **__: "")
    images = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return adapter_for(model, SimpleNamespace(tokenizer=tokenizer, image_processor=images)), pixels


def prompt(adapter: Adapter, pixels: Pixels, seed: int) -> Prepared:
    """A prompt of random words around one picture; features are not shared between samples."""
    count, views = adapter.views(pixels)
    words = torch.randint(10, 1000, (WORDS,), generator=torch.Generator().manual_seed(seed))
    ids = torch.cat([words[:8], torch.full((count,), adapter.image_token_id), words[8:]])
    views = views if adapter.mixed else tuple(view.shifted(8) for view in views)
    image = ImageLayout(pixels.size, range(8, 8 + count), views, adapter.mixed)
    mine = Pixels(f"{seed}", pixels.values + 0.01 * seed, pixels.size, pixels.grid, pixels.words)
    return Prepared(ids, (mine,), Layout(len(ids), len(ids), (image,)), "", ((0, 0),) * len(ids), (0, 0))


def measure(adapter: Adapter, pixels: Pixels, batch: int, steps: int, repeats: int) -> dict[str, Any]:
    """Medians over `repeats` of each figure; plain and capturing runs alternate."""
    prepared = [prompt(adapter, pixels, seed) for seed in range(batch)]
    depth = len(adapter.attention_layers)
    everything = Capture().resolved(depth, adapter.model.config.get_text_config().num_attention_heads)
    first = Capture(tokens=(0,)).resolved(depth, 10**6)
    kinds = {"plain": None, "last prompt row": first, "every step": everything, "every step, kept on the GPU": None}
    kinds["every step, kept on the GPU"] = Capture(device=None).resolved(depth, 10**6)

    def once(capture: Capture | None, tokens: int) -> tuple[float, int]:
        requests = [Request(Sample((), "-"), one, str(index), 0, tokens) for index, one in enumerate(prepared)]
        options = Options(Method(), Sampling(), frozenset(), 0, capture)
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        run(adapter, requests, options, batch)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() if cuda else 0

    seen: dict[str, list[tuple[float, float, int]]] = {name: [] for name in kinds}
    for capture in kinds.values():
        once(capture, 4)
    for _ in range(repeats):
        for name, capture in kinds.items():
            short, _ = once(capture, 1)
            long, peak = once(capture, 1 + steps)
            seen[name].append((short, (long - short) / steps, peak))
    figures: dict[str, Any] = {}
    for name, rows in seen.items():
        figures[name] = {
            "prefill_ms": round(1000 * statistics.median(row[0] for row in rows), 2),
            "step_ms": round(1000 * statistics.median(row[1] for row in rows), 3),
            "peak_gib": round(max(row[2] for row in rows) / 2**30, 3),
        }
    plain = figures["plain"]
    for one in figures.values():
        one["prefill_ratio"] = round(one["prefill_ms"] / plain["prefill_ms"], 3)
        one["step_ratio"] = round(one["step_ms"] / plain["step_ms"], 3)
        one["extra_mib"] = round(1024 * (one["peak_gib"] - plain["peak_gib"]), 1)
    return {"tokens": len(prepared[0].ids), "image_tokens": len(prepared[0].layout.image_tokens), "figures": figures}


def ties(adapter: Adapter, pixels: Pixels, batch: int, steps: int) -> dict[str, Any]:
    """How many bf16 tokens of a batch differ from one-by-one decoding before the first difference of each sample."""
    prepared = [prompt(adapter, pixels, seed) for seed in range(batch)]
    requests = [Request(Sample((), "-"), one, str(index), 0, steps) for index, one in enumerate(prepared)]
    options = Options(Method(), Sampling(), frozenset(), 0)
    together, alone = run(adapter, requests, options, batch), run(adapter, requests, options, 1)
    agree = 0
    for one, other in zip(together, alone, strict=True):
        pairs = zip(one.token_ids, other.token_ids, strict=True)
        agree += next((index for index, (a, b) in enumerate(pairs) if a != b), steps)
    equal = sum(a.token_ids == b.token_ids for a, b in zip(together, alone, strict=True))
    return {"samples": batch, "tokens_each": steps, "equal_samples": equal, "tokens_before_a_difference": agree}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__,
        "transformers": transformers.__version__, "batch": args.batch, "steps": args.steps, "repeats": args.repeats,
        "dtype": "bfloat16", "families": [kind.family for kind in ADAPTERS], "models": {},
    }  # fmt: skip
    for name in args.only:
        start = time.perf_counter()
        adapter, pixels = build(name, device, args.tiny)
        report["models"][name] = measure(adapter, pixels, args.batch, args.steps, args.repeats)
        report["models"][name]["ties"] = ties(adapter, pixels, args.batch, args.steps)
        report["models"][name]["seconds"] = round(time.perf_counter() - start, 1)
        print(name, json.dumps(report["models"][name]), flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")  # whatever comes next, this one is kept
        del adapter
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
