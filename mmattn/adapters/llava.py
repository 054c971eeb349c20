"""LLaVA-1.5: one CLIP view per picture, resized and centre-cropped or padded to a square by the processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from mmattn.adapters.base import Adapter, Pixels, Shares
from mmattn.adapters.layout import Affine, View
from mmattn.adapters.tower import class_rows
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

    def preprocess(self, pictures: Mapping[str, Image.Image]) -> list[Pixels]:
        values = self.processor.image_processor(images=list(pictures.values()), return_tensors="pt")["pixel_values"]
        return [Pixels(key, one, pictures[key].size) for key, one in zip(pictures, values, strict=True)]

    def views(self, pixels: Pixels) -> tuple[int, tuple[View, ...]]:
        rows, columns = pixels.values.shape[-2] // self.patch, pixels.values.shape[-1] // self.patch
        return rows * columns, (View(0, rows, columns, self._to_pixels(pixels.size)),)

    def encode(self, pictures: Sequence[Pixels], shares: Shares | None = None) -> list[torch.Tensor]:  # noqa: ARG002
        values = torch.stack([picture.values for picture in pictures])
        self.check_size(values)
        tower = next(self.model.model.vision_tower.parameters())
        values = values.to(tower.device, tower.dtype)
        return list(self.model.get_image_features(pixel_values=values, return_dict=True).pooler_output)

    def class_attention(self, pictures: Sequence[Pixels], layers: Sequence[int]) -> list[torch.Tensor]:
        tower = self.model.model.vision_tower
        return list(class_rows(tower, len(pictures), layers, lambda: self.encode(pictures)).unbind(1))

    def check_size(self, values: torch.Tensor) -> None:
        """Refuse pictures (..., H, W) that the vision tower was not made for."""
        side = self.model.config.vision_config.image_size
        if values.shape[-2:] != (side, side):
            raise MmattnError(
                f"The processor makes pictures of {values.shape[-1]} x {values.shape[-2]} pixels, "
                f"but the vision tower wants {side} x {side}",
                "Use the processor that belongs to the model.",
            )

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
