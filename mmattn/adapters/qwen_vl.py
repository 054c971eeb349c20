"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any resolution, patches merged two by two, positions in time, height and width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from mmattn.adapters.base import Adapter, Added, Pixels, Prepared, Shares, content_key
from mmattn.adapters.layout import Affine, View


class QwenVLAdapter(Adapter):
    """`Qwen2VL...`, `Qwen2_5_VL...` and `Qwen3VLForConditionalGeneration`, pictures only.

    The model keeps the offset of its positions on itself between calls; here positions travel with the batch, so that
    state is neither read nor written.
    """

    family = "qwen-vl"
    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

    def preprocess(self, pictures: Mapping[str, Image.Image]) -> list[Pixels]:
        done = self.processor.image_processor(images=list(pictures.values()), return_tensors="pt")
        grids = [tuple(int(side) for side in grid) for grid in done["image_grid_thw"]]
        values = torch.split(done["pixel_values"], [frames * rows * columns for frames, rows, columns in grids])
        return [
            Pixels(key, one, picture.size, (grid[0], grid[1], grid[2]))
            for (key, picture), one, grid in zip(pictures.items(), values, grids, strict=True)
        ]

    def received(self, inputs: Mapping[str, torch.Tensor]) -> list[Pixels]:
        grids = [(int(t), int(rows), int(columns)) for t, rows, columns in inputs["image_grid_thw"]]
        values = torch.split(inputs["pixel_values"].cpu(), [t * rows * columns for t, rows, columns in grids])
        patch = int(self.model.config.vision_config.patch_size)
        return [
            Pixels(content_key(one), one, (grid[2] * patch, grid[1] * patch), grid)
            for one, grid in zip(values, grids, strict=True)
        ]

    def views(self, pixels: Pixels) -> tuple[int, tuple[View, ...]]:
        _, rows, columns = _grid(pixels)
        rows, columns = rows // self._merge, columns // self._merge
        width, height = pixels.size  # resized to whole cells, nothing cut or padded
        return rows * columns, (View(0, rows, columns, Affine(width / columns, height / rows)),)

    def encode(self, pictures: Sequence[Pixels], shares: Shares | None = None) -> list[torch.Tensor]:  # noqa: ARG002
        device = next(self.model.model.visual.parameters()).device
        grids = torch.tensor([_grid(one) for one in pictures], device=device)
        values = torch.cat([one.values for one in pictures]).to(device)
        out = self.model.get_image_features(values, grids, return_dict=True)
        layers = [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]
        return [torch.cat(parts, dim=-1) for parts in zip(*layers, strict=True)]

    def positions(self, rows: Sequence[Prepared], mask: torch.Tensor) -> torch.Tensor:
        """(3, B, T): a token after a picture continues from the picture's larger side."""
        width = mask.shape[1]
        positions = torch.zeros(3, len(rows), width, dtype=torch.long)
        for index, row in enumerate(rows):
            positions[:, index, width - row.layout.length :] = self._positions_of(row)
        return positions.to(mask.device)

    def prefill_extra(self, features: Sequence[torch.Tensor], places: torch.Tensor) -> dict[str, Any]:
        """Qwen3-VL adds features of earlier vision layers after the decoder's first layers (DeepStack)."""
        width = self.model.config.text_config.hidden_size
        if not features or features[0].shape[-1] == width:
            return {}
        deeper = torch.split(torch.cat(list(features)), width, dim=-1)[1:]
        return {"visual_pos_masks": places, "deepstack_visual_embeds": list(deeper)}

    def added(self, extra: dict[str, Any]) -> Added:
        if not extra:
            return {}
        rows = extra["visual_pos_masks"].flatten().nonzero()[:, 0]
        return {layer: (rows, one) for layer, one in enumerate(extra["deepstack_visual_embeds"])}

    def span_extra(
        self, extra: dict[str, Any], rows: torch.Tensor, index: torch.Tensor, inside: torch.Tensor
    ) -> dict[str, Any]:
        if not extra:
            return {}
        places = extra["visual_pos_masks"]
        number = (places.flatten().cumsum(0) - 1).view(places.shape)
        mine = places[rows, index] & inside
        wanted = number[rows, index][mine]
        return {
            "visual_pos_masks": mine,
            "deepstack_visual_embeds": [one[wanted] for one in extra["deepstack_visual_embeds"]],
        }

    @property
    def _merge(self) -> int:
        merge: int = self.model.config.vision_config.spatial_merge_size
        return merge

    def _positions_of(self, row: Prepared) -> torch.Tensor:
        """Positions (3, length) of one unpadded sequence."""
        parts: list[torch.Tensor] = []
        done = at = 0
        for image, pixels in zip(row.layout.images, row.pixels, strict=True):
            before = torch.arange(image.tokens.start - done) + at
            at += len(before)
            _, rows, columns = _grid(pixels)
            rows, columns = rows // self._merge, columns // self._merge
            grid = torch.stack(
                [torch.zeros(rows, columns), *torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")]
            )
            parts += [before.expand(3, -1), grid.long().flatten(1) + at]
            at += max(rows, columns)
            done = image.tokens.stop
        parts.append((torch.arange(row.layout.length - done) + at).expand(3, -1))
        return torch.cat(parts, dim=1)


def _grid(pixels: Pixels) -> tuple[int, int, int]:
    assert pixels.grid is not None
    return pixels.grid
