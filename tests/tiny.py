"""Builders of tiny random models and their processors."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIALS = ["<pad>", "<s>", "</s>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}{{ 'USER: ' }}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}{{ ' ASSISTANT:' }}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: any text works, and offsets are exact."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )


def tiny_llava(
    kv_heads: int = 2,
    size: int = 56,
    pad: bool = False,
    seed: int = 1,
    template: str | None = TEMPLATE,
    spread: float = 0.25,
) -> tuple[LlavaForConditionalGeneration, Any]:
    """A LLaVA of a few thousand weights; a large `spread` of the initial weights makes its attention uneven."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=size, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=spread,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, image_seq_length=(size // 14) ** 2
    )
    model = LlavaForConditionalGeneration(config).eval()
    settings: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    if pad:
        from transformers import LlavaImageProcessor

        images = LlavaImageProcessor(do_pad=True, **settings)
    else:
        images = CLIPImageProcessor(**settings)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return model, processor
