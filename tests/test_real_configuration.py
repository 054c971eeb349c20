"""LLaVA-1.5-7B by its own configuration: every shape of the real model, without its weights."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.cache_utils import DynamicCache

import mmattn
from mmattn.adapters import Sample
from mmattn.adapters.cache import cache_argument
from mmattn.attention import RowCapture
from tests.tiny import tiny_llava


def test_a_captured_prefill_of_the_7b_model_has_the_right_shapes() -> None:
    """On torch's meta device operations compute shapes only, so the real configuration fits anywhere."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, image_seq_length=576)
        ).eval()
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e9, 1) == 7.1
    processor = tiny_llava(size=336)[1]
    model.config.image_token_id = processor.image_token_id
    vlm = mmattn.wrap(model, processor)

    prepared = vlm.adapter.prepare([Sample((Image.new("RGB", (640, 480)),), "is there a dog?")])
    assert len(prepared[0].layout.image_tokens) == 576
    columns = torch.tensor([prepared[0].layout.image_tokens])
    capture = RowCapture(torch.tensor([[-1]]), columns)
    with torch.inference_mode(), vlm.adapter.session(capture):
        features = vlm.adapter.encode(prepared[0].pixels)
        assert features[0].shape == (576, 4096)
        batch = vlm.adapter.embed(prepared, [features])
        cache = DynamicCache(config=model.config.text_config)
        # A mask's values are unknown on the meta device; without one, the decoder is causal.
        decoder = vlm.adapter.decoder
        hidden = decoder(inputs_embeds=batch.embeds, **{cache_argument(decoder): cache}).last_hidden_state
        assert vlm.adapter.logits(hidden[:, -1]).shape == (1, 32064)
    assert sorted(capture.weights) == list(range(32))
    assert {tuple(one.shape) for one in capture.weights.values()} == {(1, 32, 1, 576)}
