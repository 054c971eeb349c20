"""scenes-qwen: a Qwen2.5-VL of its own, its processor, and a batched forward pass through the stock modules.

The stock vision tower goes through a batch picture by picture; training pictures are all of one size, so here the
same modules take them side by side.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from training.packed import PackedLearner
from training.processor import GRID, SIDE, Style, make_tokenizer

__all__ = ["STYLE", "Qwen", "make_model", "make_processor"]

PATCH, MERGE, FRAMES = 7, 2, 2
STYLE = Style(
    chat=(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] == 'image' %}"
        "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    frame=(
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    ),
    plain="user\n{question}\nassistant\n{answer}",
    lead="",
    pad="<|endoftext|>",
    bos=None,
    eos="<|im_end|>",
    image="<|image_pad|>",
    others=("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
)


def make_processor() -> Qwen2_5_VLProcessor:
    """Train the tokenizer and join it with Qwen's preprocessing: any shape, of about as many pixels as 168 x 168."""
    # A little room on both sides: with exact bounds, rounding would enlarge some squares by a cell.
    size = {"shortest_edge": (SIDE - 2) ** 2, "longest_edge": (SIDE + 2) ** 2}
    images = Qwen2VLImageProcessor(size=size, patch_size=PATCH, merge_size=MERGE, temporal_patch_size=FRAMES)
    video = Qwen2VLVideoProcessor(size=size, patch_size=PATCH, merge_size=MERGE, temporal_patch_size=FRAMES)
    return Qwen2_5_VLProcessor(images, make_tokenizer(STYLE), video, chat_template=STYLE.chat)


def make_model(processor: Any, tiny: bool = False) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model; ``tiny`` for smoke tests."""
    tokenizer = processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids
    width, heads = (32, 2) if tiny else (192, 6)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    section = width // heads // 2
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64, "hidden_size": width, "intermediate_size": 64 if tiny else 512,
        "num_hidden_layers": 2 if tiny else 5, "num_attention_heads": heads, "num_key_value_heads": heads // 2,
        "max_position_embeddings": 2048, "tie_word_embeddings": True, **special,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0,
            "mrope_section": [section // 4, section * 3 // 8, section - section // 4 - section * 3 // 8],
        },
    }  # fmt: skip
    vision = {
        "depth": 2 if tiny else 4, "hidden_size": 32 if tiny else 160, "intermediate_size": 64 if tiny else 480,
        "num_heads": 2 if tiny else 5, "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": FRAMES,
        "window_size": SIDE, "fullatt_block_indexes": list(range(4)), "out_hidden_size": width,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=80, **special)
    return model


class Qwen(PackedLearner):
    """Vision tower with merged patches, and a decoder that counts rows and columns."""

    grid_positions = True

    def features(self, pixels: Tensor) -> Tensor:
        tower = self.model.model.visual
        hidden = functional.linear(_patches(pixels), tower.patch_embed.proj.weight.flatten(1))
        cos, sin = tower.rotary_pos_emb(hidden, _places(pixels.device))
        for block in tower.blocks:
            hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin)
            hidden = hidden + block.mlp(block.norm2(hidden))
        features: Tensor = tower.merger(hidden.flatten(0, 1))
        return features.view(len(pixels), GRID * GRID, -1)

    def states(self, embeddings: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        decoder = self.model.model.language_model
        angles = decoder.rotary_emb(embeddings, positions[:, None].expand(-1, len(embeddings), -1))
        hidden = embeddings
        for layer in decoder.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=angles)
        states: Tensor = decoder.norm(hidden)
        return states


def _patches(pixels: Tensor) -> Tensor:
    """(B, 3, 168, 168) -> (B, 576, values), merged cell by merged cell, the one picture standing for both frames."""
    batch = len(pixels)
    cut = pixels.view(batch, 3, GRID, MERGE, PATCH, GRID, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    cut = cut[..., None, :, :].expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1)
    return cut.reshape(batch, GRID * GRID * MERGE * MERGE, -1)


def _places(device: torch.device) -> Tensor:
    """Row and column (576, 2) of each patch, in the order of `_patches`."""
    side = torch.arange(GRID * MERGE, device=device)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    grid = torch.stack([rows, columns], -1).view(GRID, MERGE, GRID, MERGE, 2)
    return grid.transpose(1, 2).reshape(-1, 2)


def _attend(module: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The stock vision attention over pictures (B, N, D) side by side."""
    batch, count, width = hidden.shape
    query, key, value = module.qkv(hidden).view(batch, count, 3, module.num_heads, -1).unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    query, key, value = (one.transpose(1, 2).to(value.dtype) for one in (query, key, value))
    mixed = functional.scaled_dot_product_attention(query, key, value)
    out: Tensor = module.proj(mixed.transpose(1, 2).reshape(batch, count, width))
    return out
