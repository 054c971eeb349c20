"""scenes-llava: its configuration, processor, and a batched forward pass through the stock modules."""

from typing import Any

from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from training.packed import PackedLearner
from training.processor import SIDE, Style, make_tokenizer

__all__ = ["STYLE", "Llava", "make_model", "make_processor"]

PATCH = 14
STYLE = Style(
    chat=(
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        "{% endif %}"
        "{% else %}{{ ' ASSISTANT: ' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        "{% endif %}{{ '</s>' }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
    ),
    frame="USER: <image>\n{question} ASSISTANT:",
    plain="USER: \n{question} ASSISTANT: {answer}",
    lead=" ",
    pad="<pad>",
    bos="<s>",
    eos="</s>",
    image="<image>",
)


def make_processor() -> LlavaProcessor:
    """Train the tokenizer and join it with CLIP's preprocessing at 168 pixels."""
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        image_processor=images, tokenizer=make_tokenizer(STYLE), patch_size=PATCH, num_additional_image_tokens=1,
        vision_feature_select_strategy="default", chat_template=STYLE.chat, image_token=STYLE.image,
    )  # fmt: skip


def make_model(processor: Any, tiny: bool = False) -> LlavaForConditionalGeneration:
    """A freshly initialised model; ``tiny`` for smoke tests."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=32 if tiny else 224, intermediate_size=64 if tiny else 896, num_hidden_layers=2 if tiny else 6,
        num_attention_heads=2 if tiny else 7, image_size=SIDE, patch_size=PATCH, projection_dim=32 if tiny else 224,
    )  # fmt: skip
    special = {
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    text = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=32 if tiny else 256,
        intermediate_size=64 if tiny else 704, num_hidden_layers=2 if tiny else 5,
        num_attention_heads=2 if tiny else 8, num_key_value_heads=2 if tiny else 8, max_position_embeddings=1024,
        tie_word_embeddings=True, **special,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True, **special,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=80, **special)
    return model


class Llava(PackedLearner):
    """CLIP tower, projector, Llama."""

    def features(self, pixels: Tensor) -> Tensor:
        tower = self.model.model.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in tower.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        features: Tensor = self.model.model.multi_modal_projector(hidden[:, 1:])
        return features

    def states(self, embeddings: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        decoder = self.model.model.language_model
        where = positions[:1].expand(len(embeddings), -1)
        angles = decoder.rotary_emb(embeddings, position_ids=where)
        hidden = embeddings
        for layer in decoder.layers:
            hidden = layer(hidden, attention_mask=mask, position_ids=where, position_embeddings=angles)
        states: Tensor = decoder.norm(hidden)
        return states
