"""What a user of plain transformers does with a model of each family; the contract tests compare with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import mmattn
from tests.tiny import FAMILIES


def comparable(family: str) -> mmattn.VLM:
    """A tiny model of a family whose answers hold no image token: plain transformers takes it for another picture."""
    vlm = mmattn.wrap(*FAMILIES[family](spread=0.12))
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[vlm.adapter.image_token_id] = 0
    return vlm


def is_t5(vlm: mmattn.VLM) -> bool:
    return bool(vlm.model.config.get_text_config().is_encoder_decoder)


def inputs_of(vlm: mmattn.VLM, images: list[Any], prompts: list[str]) -> dict[str, torch.Tensor]:
    """A padded batch by the processor; `images` holds a list per prompt."""
    # InstructBLIP's processor pads between picture and words, which on the left shifts T5's relative positions.
    vlm.processor.tokenizer.padding_side = "right" if is_t5(vlm) else "left"
    flat = [image for row in images for image in row]
    if vlm.adapter.mixed:
        inputs = dict(vlm.processor(images=flat, text=prompts, padding=True, return_tensors="pt"))
        return {**inputs, "decoder_input_ids": torch.zeros(len(prompts), 1).long()} if is_t5(vlm) else inputs
    texts = []
    for row, prompt in zip(images, prompts, strict=True):
        content = [*({"type": "image"} for _ in row), {"type": "text", "text": prompt}]
        texts.append(vlm.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
    if vlm.adapter.family == "llava-onevision":  # pictures that share a prompt are processed in another way
        flat = [row for row in images if row]
    return dict(vlm.processor(images=flat, text=texts, padding=True, return_tensors="pt"))


def new_tokens(vlm: mmattn.VLM, inputs: dict[str, torch.Tensor], **settings: Any) -> list[list[int]]:
    """What transformers' own `generate` adds to the prompt."""
    given = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    before = 1 if is_t5(vlm) else inputs["input_ids"].shape[1]
    return [row.tolist() for row in vlm.model.generate(**given, **settings)[:, before:]]


@contextmanager
def attention(vlm: mmattn.VLM, name: str) -> Iterator[None]:
    """The decoder under another attention implementation."""
    owner, key = vlm.adapter.attention_owner, vlm.adapter.config_key
    owner.set_attn_implementation({key: name})
    try:
        yield
    finally:
        owner.set_attn_implementation({key: "sdpa"})


def implementation(vlm: mmattn.VLM) -> str:
    owner, key = vlm.adapter.attention_owner, vlm.adapter.config_key
    return str((getattr(owner.config, key) if key else owner.config)._attn_implementation)


def eager_maps(vlm: mmattn.VLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The full attention that reaches the image tokens: (layers, B, H, T, S)."""
    with attention(vlm, "eager"), torch.no_grad():
        out = vlm.model(**inputs, output_attentions=True)
    out = getattr(out, "language_model_outputs", out)
    return torch.stack(out.cross_attentions if is_t5(vlm) else out.attentions)
