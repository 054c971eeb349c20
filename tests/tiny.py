"""Builders of tiny random models and their processors."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AddedToken,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
    T5Config,
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
    head_dim: int = 12,
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
        head_dim=head_dim,
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


def _text(vocabulary: int, kv_heads: int = 2, spread: float = 0.25) -> dict[str, Any]:
    """Settings that every tiny decoder shares."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": spread,
    }


def tiny_llava_next(spread: float = 0.25) -> tuple[Any, Any]:
    """Tiles of 56 pixels, up to 2 x 2 or 1 x 3 of them."""
    torch.manual_seed(2)
    tokenizer = byte_tokenizer()
    pinpoints = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_text(len(tokenizer), spread=spread)),
        image_token_index=3,
        image_grid_pinpoints=pinpoints,
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return LlavaNextForConditionalGeneration(config).eval(), processor


def tiny_llava_onevision(spread: float = 0.25) -> tuple[Any, Any]:
    """Tiles of 56 pixels, shrunk to the area of two."""
    torch.manual_seed(8)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    pinpoints = [[56, 56], [56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14,
        vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**_text(len(tokenizer), spread=spread)),
        image_token_index=3,
        video_token_index=len(tokenizer) - 1,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_2",
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.image_newline)
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=TEMPLATE,
    )
    return model, processor


QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|user|>' }}{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endfor %}{{ '<|assistant|>' }}"
)


def _qwen_parts(patch: int) -> tuple[Any, dict[str, int], Any]:
    """Tokenizer, ids of its vision tokens, and processor."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", *QWEN]})
    start, end, image, video = tokenizer.convert_tokens_to_ids(QWEN)
    ids = {"vision_start_token_id": start, "vision_end_token_id": end, "image_token_id": image, "video_token_id": video}
    side = 2 * patch
    size = {"shortest_edge": 4 * side * side, "longest_edge": 16 * side * side}
    images = Qwen2VLImageProcessor(patch_size=patch, size=size)
    return tokenizer, ids, images


def tiny_qwen2_5(spread: float = 0.25) -> tuple[Any, Any]:
    """Patch 14, windows of 4 x 4 patches, one full layer."""
    torch.manual_seed(3)
    tokenizer, ids, images = _qwen_parts(14)
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14, "window_size": 56,
        "fullatt_block_indexes": [1], "out_hidden_size": 48, "spatial_merge_size": 2, "initializer_range": 0.2,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    text = {**_text(len(tokenizer), spread=spread), "rope_parameters": rope}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)).eval()
    processor = Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    model.generation_config.eos_token_id = 2
    return model, processor


def tiny_qwen2(spread: float = 0.25) -> tuple[Any, Any]:
    """The oldest of the three."""
    torch.manual_seed(4)
    tokenizer, ids, images = _qwen_parts(14)
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2,
        "spatial_merge_size": 2, "initializer_range": 0.2,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    text = {**_text(len(tokenizer), spread=spread), "rope_parameters": rope}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids)).eval()
    processor = Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    model.generation_config.eos_token_id = 2
    return model, processor


def tiny_qwen3(spread: float = 0.25) -> tuple[Any, Any]:
    """Patch 16, features of an earlier vision layer added to the decoder (DeepStack)."""
    torch.manual_seed(5)
    tokenizer, ids, images = _qwen_parts(16)
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 16,
        "out_hidden_size": 48, "spatial_merge_size": 2, "deepstack_visual_indexes": [0], "num_position_embeddings": 64,
        "initializer_range": 0.2,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    text = {**_text(len(tokenizer), spread=spread), "rope_parameters": rope, "head_dim": 12}
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids)).eval()
    processor = Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    model.generation_config.eos_token_id = 2
    return model, processor


def _instructblip(text: Any) -> tuple[Any, Any]:
    """8 query tokens, a Q-Former of 4 layers that looks at the picture in two of them; the bare words as prompt."""
    vision = InstructBlipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14,
        initializer_range=0.2,
    )  # fmt: skip
    tokenizer, reader = byte_tokenizer(), byte_tokenizer()
    tokenizer.image_token = AddedToken("<image>", normalized=False, special=True)
    reader.padding_side = "right"
    former = InstructBlipQFormerConfig(
        vocab_size=len(reader), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        encoder_hidden_size=32, max_position_embeddings=256, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    config = InstructBlipConfig(
        vision_config=vision, qformer_config=former, text_config=text, num_query_tokens=8, image_token_index=3
    )
    model = InstructBlipForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.query_tokens)  # zeros at first
    images = BlipImageProcessor(size={"height": 56, "width": 56})
    return model, InstructBlipProcessor(images, tokenizer, reader, num_query_tokens=8)


def tiny_instructblip(spread: float = 0.25) -> tuple[Any, Any]:
    """With a Llama, as the Vicuna checkpoints have it."""
    torch.manual_seed(6)
    return _instructblip(LlamaConfig(**_text(len(byte_tokenizer()), spread=spread)))


def tiny_instructblip_t5(spread: float = 0.25) -> tuple[Any, Any]:
    """With a T5, as the Flan-T5 checkpoints have it."""
    torch.manual_seed(7)
    text = T5Config(
        vocab_size=len(byte_tokenizer()), d_model=48, d_kv=12, d_ff=96, num_layers=3, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, eos_token_id=2,
        pad_token_id=0, initializer_factor=10 * spread,
    )  # fmt: skip
    model, processor = _instructblip(text)
    with torch.no_grad():
        model.language_model.shared.weight.mul_(0.1)  # else the start token outweighs all that is said
    return model, processor


FAMILIES = {
    "llava": tiny_llava,
    "llava-next": tiny_llava_next,
    "llava-onevision": tiny_llava_onevision,
    "instructblip": tiny_instructblip,
    "instructblip-t5": tiny_instructblip_t5,
    "qwen2-vl": tiny_qwen2,
    "qwen2.5-vl": tiny_qwen2_5,
    "qwen3-vl": tiny_qwen3,
}
