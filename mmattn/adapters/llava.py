"""LLaVA-1.5: one CLIP view per picture, resized and centre-cropped or padded to a square by the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mmattn.adapters.base import Adapter, Pixels, Prepared, Sample
from mmattn.adapters.layout import Affine, ImageLayout, Layout, View
from mmattn.adapters.text import render, tokenise
from mmattn.errors import MmattnError


class LlavaAdapter(Adapter):
    """`LlavaForConditionalGeneration` with a CLIP-like vision tower."""

    family = "llava"
    model_types = ("llava",)

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        super().__init__(model, processor)
        vision = model.config.vision_config
        if not hasattr(vision, "patch_size") or vision.model_type == "pixtral":
            raise MmattnError(
                f"LLaVA with a {vision.model_type} vision tower is not supported",
                "Use one with a CLIP or SigLIP tower.",
            )
        self.patch = int(vision.patch_size)

    @property
    def decoder(self) -> nn.Module:
        decoder: nn.Module = self.model.model.language_model
        return decoder

    @property
    def attention_layers(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.model.model.language_model.layers]

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        distinct = {key: img for one in samples for key, img in zip(one.image_keys, one.images, strict=True)}
        pixels: dict[str, Pixels] = {}
        if distinct:
            values = self.processor.image_processor(images=list(distinct.values()), return_tensors="pt")["pixel_values"]
            pixels = {key: Pixels(key, value) for key, value in zip(distinct, values, strict=True)}
        return [self._prepare_one(sample, tuple(pixels[key] for key in sample.image_keys)) for sample in samples]

    def _prepare_one(self, sample: Sample, pixels: tuple[Pixels, ...]) -> Prepared:
        grids = [(one.values.shape[-2] // self.patch, one.values.shape[-1] // self.patch) for one in pixels]
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        text = render(self.processor, sample, token, [rows * columns for rows, columns in grids])
        ids, offsets, prompt_length = tokenise(self.tokenizer, text, sample.answer)
        starts = image_starts(ids[:prompt_length], self.image_token_id, [rows * columns for rows, columns in grids])
        images = tuple(
            ImageLayout(image.size, (View(start, *grid, self._to_pixels(image.size)),))
            for image, grid, start in zip(sample.images, grids, starts, strict=True)
        )
        return Prepared(torch.tensor(ids), pixels, Layout(len(ids), prompt_length, images), text, offsets)

    def encode(self, pictures: Sequence[Pixels]) -> list[torch.Tensor]:
        values = torch.stack([picture.values for picture in pictures])
        side = self.model.config.vision_config.image_size
        if values.shape[-2:] != (side, side):
            raise MmattnError(
                f"The processor makes pictures of {values.shape[-1]} x {values.shape[-2]} pixels, "
                f"but the vision tower wants {side} x {side}",
                "Use the processor that belongs to the model.",
            )
        tower = next(self.model.model.vision_tower.parameters())
        values = values.to(tower.device, tower.dtype)
        return list(self.model.get_image_features(pixel_values=values, return_dict=True).pooler_output)

    def _to_pixels(self, size: tuple[int, int]) -> Affine:
        """Follow one picture of `size` (W, H) through pad, resize and crop, backwards."""
        settings = self.processor.image_processor
        width, height = size
        offset_x = offset_y = 0.0
        if getattr(settings, "do_pad", False):
            side = max(size)
            offset_x, offset_y = -((side - width) // 2), -((side - height) // 2)
            width = height = side
        scale_x = scale_y = 1.0
        if settings.do_resize:
            new_width, new_height = _resized((width, height), settings.size)
            scale_x, scale_y = width / new_width, height / new_height
            width, height = new_width, new_height
        if settings.do_center_crop:
            offset_x += scale_x * _crop_start(width, settings.crop_size["width"])
            offset_y += scale_y * _crop_start(height, settings.crop_size["height"])
        return Affine(scale_x * self.patch, scale_y * self.patch, offset_x, offset_y)


def _resized(size: tuple[int, int], target: Any) -> tuple[int, int]:
    """(W, H) after the processor's resize: by its shortest edge, or to a fixed height and width."""
    width, height = size
    edge = target.get("shortest_edge") if hasattr(target, "get") else target.shortest_edge
    if edge:
        long = int(edge * max(size) / min(size))
        return (edge, long) if width <= height else (long, edge)
    return int(target["width"]), int(target["height"])


def _crop_start(length: int, crop: int) -> int:
    """First pixel kept by a centre crop; negative where the picture is padded up to the crop."""
    return (length - crop) // 2 if length >= crop else -((crop - length) // 2)


def image_starts(ids: Sequence[int], token: int, lengths: Sequence[int]) -> list[int]:
    """Where each picture's run of image tokens begins; the runs must have exactly these lengths.

    Adjacent pictures touch, so runs are told apart by their lengths, in order.
    """
    places = [index for index, one in enumerate(ids) if one == token]
    if len(places) != sum(lengths):
        raise MmattnError(
            f"The prompt holds {len(places)} image tokens but its pictures need {sum(lengths)}",
            "Do not write image placeholders into the prompt; pictures are placed by the chat template.",
        )
    starts, seen = [], 0
    for length in lengths:
        run = places[seen : seen + length]
        if run[-1] - run[0] != length - 1:
            raise MmattnError("The image tokens of one picture are not consecutive", "Check the chat template.")
        starts.append(run[0])
        seen += length
    return starts
