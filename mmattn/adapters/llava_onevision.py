"""LLaVA-OneVision: one picture as in LLaVA-NeXT, its tiles shrunk where they are many; several as one view each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from PIL import Image

from mmattn.adapters.base import Pixels, Prepared, Shares, content_key
from mmattn.adapters.layout import Affine, View
from mmattn.adapters.llava_next import LlavaNextAdapter
from mmattn.adapters.sample import Sample
from mmattn.adapters.tower import without_class_token


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """`LlavaOnevisionForConditionalGeneration`, pictures only.

    A picture that is alone in its prompt is tiled. One of several is padded to a square and shown once; its `Pixels`
    hold a single view, by which it is told.
    """

    family = "llava-onevision"
    model_types = ("llava_onevision",)

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        pixels: dict[tuple[bool, str], Pixels] = {}
        for several, make in ((False, self.preprocess), (True, self._squares)):
            shown = [one for one in samples if (len(one.images) > 1) == several]
            pictures = {key: img for one in shown for key, img in zip(one.image_keys, one.images, strict=True)}
            made = make(pictures) if pictures else []
            pixels |= {(several, key): one for key, one in zip(pictures, made, strict=True)}
        return [
            self.prepare_one(sample, tuple(pixels[len(sample.images) > 1, key] for key in sample.image_keys))
            for sample in samples
        ]

    def class_attention(self, pictures: Sequence[Pixels], layers: Sequence[int]) -> list[torch.Tensor]:  # noqa: ARG002
        raise without_class_token(self.model.config.vision_config.model_type)

    def received(self, inputs: Mapping[str, torch.Tensor]) -> list[Pixels]:
        found = super().received(inputs)
        squares = [not bool(one.values[1:].any()) for one in found]  # the processor fills up with zeros
        return [
            replace(one, key=content_key(one.values[:1]), values=one.values[:1]) if square else one
            for one, square in zip(found, squares, strict=True)
        ]

    def views(self, pixels: Pixels) -> tuple[int, tuple[View, ...]]:
        if len(pixels.values) == 1:
            return self._square_view(pixels)
        _, (base, tiles) = super().views(pixels)
        most = int(self.model.config.vision_aspect_ratio.rpartition("_")[2])
        ratio = math.sqrt(tiles.rows * tiles.columns / (most * base.rows**2))
        if ratio > 1.1:
            rows, columns = int(tiles.rows // ratio), int(tiles.columns // ratio)
            at = tiles.to_pixels
            wider = Affine(
                at.scale_x * tiles.columns / columns, at.scale_y * tiles.rows / rows, at.offset_x, at.offset_y
            )
            tiles = replace(tiles, rows=rows, columns=columns, to_pixels=wider)
        return tiles.start + tiles.rows * (tiles.columns + 1), (base, tiles)

    def encode(self, pictures: Sequence[Pixels], shares: Shares | None = None) -> list[torch.Tensor]:  # noqa: ARG002
        self.check_size(pictures[0].values)
        tower = next(self.model.model.vision_tower.parameters())
        found: dict[int, torch.Tensor] = {}
        for square in (False, True):
            mine = [index for index, one in enumerate(pictures) if (len(one.values) == 1) == square]
            if not mine:
                continue
            values = torch.cat([pictures[index].values for index in mine]).to(tower.device, tower.dtype)
            sizes = torch.tensor([pictures[index].size[::-1] for index in mine])
            # Any number but 1 says "not tiled", of that many pictures.
            numbers = [max(len(mine), 2)] if square else [1] * len(mine)
            out = self.model.get_image_features(values, image_sizes=sizes, batch_num_images=numbers, return_dict=True)
            found |= dict(zip(mine, out.pooler_output, strict=True))
        return [found[index] for index in range(len(pictures))]

    def _squares(self, pictures: Mapping[str, Image.Image]) -> list[Pixels]:
        shown = list(pictures.values())
        # One more than there are: the processor tiles a picture that is alone.
        values = self.processor.image_processor(images=[[*shown, shown[0]]], return_tensors="pt")["pixel_values"]
        return [
            Pixels(f"{key} square", one[:1], picture.size)
            for (key, picture), one in zip(pictures.items(), values, strict=False)
        ]

    def _square_view(self, pixels: Pixels) -> tuple[int, tuple[View, ...]]:
        """One view of the padded picture, and one newline token behind it."""
        rows, columns = (length // self.patch for length in pixels.values.shape[-2:])
        width, height = pixels.size
        side = max(pixels.size)
        view = View(
            0, rows, columns, Affine(side / columns, side / rows, -((side - width) // 2), -((side - height) // 2))
        )
        return rows * columns + 1, (view,)
