"""scenes-llava's configuration, and a forward pass over packed sequences with the stock modules."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from training.processor import PATCH, SIDE

__all__ = ["image_features", "make_model", "preprocess", "text_states"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def make_model(processor: LlavaProcessor, tiny: bool = False) -> LlavaForConditionalGeneration:
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


def preprocess(pictures: Tensor) -> Tensor:
    """What the image processor does, on the device: (B, 3, 336, 336) uint8 -> (B, 3, 168, 168) normalised."""
    small = functional.interpolate(pictures.float(), size=(SIDE, SIDE), mode="bicubic", antialias=True)
    mean = torch.tensor(_MEAN, device=pictures.device)[:, None, None]
    std = torch.tensor(_STD, device=pictures.device)[:, None, None]
    return (small.clamp(0, 255).round() / 255 - mean) / std


def image_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Projected patch features, (B, 144, hidden)."""
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
    features: Tensor = model.model.multi_modal_projector(hidden[:, 1:])
    return features


def text_states(model: LlavaForConditionalGeneration, embeddings: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Final hidden states (B, T, hidden) under an explicit mask (1, 1, T, T) and positions (T,)."""
    decoder = model.model.language_model
    where = positions[None].expand(len(embeddings), -1)
    angles = decoder.rotary_emb(embeddings, position_ids=where)
    hidden = embeddings
    for layer in decoder.layers:
        hidden = layer(hidden, attention_mask=mask, position_ids=where, position_embeddings=angles)
    states: Tensor = decoder.norm(hidden)
    return states


class Learner(nn.Module):
    """The model with its throw-away patch classifier; computes the training loss of a batch."""

    def __init__(self, model: LlavaForConditionalGeneration, categories: int) -> None:
        super().__init__()
        self.model = model
        self.patches = nn.Linear(model.config.text_config.hidden_size, categories + 1)

    def embed(self, pixels: Tensor, ids: Tensor, image_start: int) -> tuple[Tensor, Tensor]:
        """Token embeddings with the image features in their place, and the features."""
        features = image_features(self.model, pixels)
        table = self.model.model.language_model.embed_tokens
        head, tail = ids[:, :image_start], ids[:, image_start + features.shape[1] :]
        joined = torch.cat([table(head), features.to(table.weight.dtype), table(tail)], 1)
        return joined, features

    def forward(
        self, pixels: Tensor, ids: Tensor, labels: Tensor, patch_labels: Tensor, weights: Tensor,
        positions: Tensor, mask: Tensor, image_start: int, first: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Summed text loss weighted per position (divided by B), patch loss, and token losses (B, T - first).

        ``weights`` (T,) is the weight of predicting each position; nothing before ``first`` is predicted.
        """
        embeddings, features = self.embed(pixels, ids, image_start)
        states = text_states(self.model, embeddings, positions, mask)[:, first - 1 : -1]
        logits = self.model.lm_head(states).float()
        target = labels[:, first:]
        each = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none", ignore_index=-100)
        each = each.view_as(target)
        text = (each * weights[first:]).sum() / len(each)
        patch_logits = self.patches(features).float().flatten(0, 1)
        patch = functional.cross_entropy(patch_logits, patch_labels.flatten(), ignore_index=-100)
        return text, patch, each
