"""LLaVA-NeXT (1.6): the whole picture, then tiles of a larger copy, unpadded, each row ended by a newline token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

from mmattn.adapters.base import Pixels, Shares, content_key
from mmattn.adapters.layout import Affine, View
from mmattn.adapters.llava import LlavaAdapter
from mmattn.adapters.tower import class_rows


class LlavaNextAdapter(LlavaAdapter):
    """`LlavaNextForConditionalGeneration`: two views per picture, base and stitched tiles."""

    family = "llava-next"
    model_types = ("llava_next",)

    def preprocess(self, pictures: Mapping[str, Image.Image]) -> list[Pixels]:
        values = self.processor.image_processor(images=list(pictures.values()), return_tensors="pt")["pixel_values"]
        kept = []
        for (key, picture), one in zip(pictures.items(), values, strict=True):
            height, width = self._resolution(picture.size)
            tiles = (height // one.shape[-2]) * (width // one.shape[-1])
            kept.append(Pixels(key, one[: 1 + tiles], picture.size))  # the processor fills up to the largest picture
        return kept

    def received(self, inputs: Mapping[str, torch.Tensor]) -> list[Pixels]:
        found = []
        for one, (height, width) in zip(inputs["pixel_values"].cpu(), inputs["image_sizes"].tolist(), strict=True):
            full = self._resolution((width, height))
            tiles = (full[0] // one.shape[-2]) * (full[1] // one.shape[-1])
            found.append(Pixels(content_key(one[: 1 + tiles]), one[: 1 + tiles], (width, height)))
        return found

    def views(self, pixels: Pixels) -> tuple[int, tuple[View, ...]]:
        width, height = pixels.size
        base_rows, base_columns = pixels.values.shape[-2] // self.patch, pixels.values.shape[-1] // self.patch
        # The base view ignores the aspect ratio.
        base = View(0, base_rows, base_columns, Affine(width / base_columns, height / base_rows))
        full_height, full_width = self._resolution(pixels.size)
        x = _unpadded(width, height, full_width, full_height, self.patch)
        y = _unpadded(height, width, full_height, full_width, self.patch)
        tiles = View(base_rows * base_columns, y[0], x[0], Affine(x[1], y[1], x[2], y[2]), gap=1)
        return tiles.start + tiles.rows * (tiles.columns + 1), (base, tiles)

    def encode(self, pictures: Sequence[Pixels], shares: Shares | None = None) -> list[torch.Tensor]:  # noqa: ARG002
        self.check_size(pictures[0].values)
        tower = next(self.model.model.vision_tower.parameters())
        values = torch.cat([one.values for one in pictures]).to(tower.device, tower.dtype)
        sizes = torch.tensor([one.size[::-1] for one in pictures])
        return list(self.model.get_image_features(values, image_sizes=sizes, return_dict=True).pooler_output)

    def class_attention(self, pictures: Sequence[Pixels], layers: Sequence[int]) -> list[torch.Tensor]:
        """Each tile has a class token of its own."""
        tiles = [len(one.values) for one in pictures]
        rows = class_rows(self.model.model.vision_tower, sum(tiles), layers, lambda: self.encode(pictures))
        # Packed as the features are, the layers in place of their width; newline tokens show no place.
        maps = list(torch.split(rows.permute(1, 2, 0), tiles))
        sizes = torch.tensor([one.size[::-1] for one in pictures])
        packed, *_ = self.model.model.pack_image_features(maps, sizes, "default", torch.full((len(layers),), torch.nan))
        return [one.T for one in packed]

    def _resolution(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the tiled copy of a picture of `size` (W, H)."""
        height, width = select_best_resolution(size[::-1], self.model.config.image_grid_pinpoints)
        return int(height), int(width)


def _unpadded(length: int, other: int, full: int, full_other: int, patch: int) -> tuple[int, float, float]:
    """Along one axis: cells kept, and the affine map (scale, offset) from them to original pixels.

    The copy is scaled to fit into (full, full_other), padded in the middle in pixels, cut into patches, and then the
    padding is cut off again in whole cells; the two roundings differ.
    """
    tight = full / length > full_other / other  # this axis is padded, the other one fills its side
    if not tight:
        return full // patch, patch * length / full, 0.0
    scaled = min(math.ceil(length * full_other / other), full)
    before = (full - scaled) // 2
    cells = full // patch
    kept = int(round(length * (full_other // patch) / other, 7))
    skipped = (cells - kept) // 2
    scale = length / scaled
    return cells - 2 * skipped, patch * scale, (skipped * patch - before) * scale
