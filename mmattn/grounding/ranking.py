"""Which heads point at what is asked for: ranked on pictures with known boxes, which are then no good for reporting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mmattn.errors import MmattnError
from mmattn.grounding.attention import Attention
from mmattn.grounding.ground import asking, questions
from mmattn.grounding.locator import at_cells, detail
from mmattn.grounding.maps import Heads
from mmattn.grounding.reader import Reader
from mmattn.grounding.regions import centres
from mmattn.grounding.result import Box
from mmattn.images import ImageLike, open_image

if TYPE_CHECKING:
    from mmattn.vlm import VLM


@dataclass(frozen=True)
class Shown:
    """A picture with queries about it and their boxes, XYXY pixels of the upright original."""

    image: ImageLike
    queries: tuple[str, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class RankedHead:
    """One head and how often its strongest cell lies in the box, of `queries` queries."""

    layer: int
    head: int
    pointing: float
    queries: int


def rank_heads(
    vlm: VLM, pictures: Sequence[Shown], method: Heads | None = None, batch_size: int = 16
) -> list[RankedHead]:
    """All heads of all layers, the best one first; equal ones in the order of layers and heads.

    Args:
        vlm: the model.
        pictures: a calibration set.
        method: whose prompt and tokens are used; its `chosen` play no part.
        batch_size: queries per decoder call.

    Raises:
        MmattnError: there is no query, or no token of any can be read.
    """
    method = method or Heads()
    hits: torch.Tensor | None = None
    count = 0
    for shown in pictures:
        picture = open_image(shown.image)
        asked = questions(
            vlm.adapter, picture, shown.queries, method, asking(vlm.generate, picture, method, batch_size)
        )
        kept = [(one.job, box) for one, box in zip(asked, shown.boxes, strict=True) if one.job]
        reader = Reader(vlm.adapter, picture, batch_size)
        reads = reader.rows([job for job, _ in kept]) if kept else iter(())
        for (_, box), read in zip(kept, reads, strict=True):
            found = _hits(read, box, picture.size)
            hits = found if hits is None else hits + found
            count += 1
    if hits is None:
        raise MmattnError("There is nothing to rank the heads by", "Give pictures with queries and boxes.")
    order = hits.flatten().argsort(descending=True, stable=True).tolist()
    width = hits.shape[1]
    return [RankedHead(at // width, at % width, float(hits.flatten()[at]) / count, count) for at in order]


def _hits(read: Attention, box: Box, size: tuple[int, int]) -> torch.Tensor:
    """Whether each head's strongest cell inside the picture has its centre in the box: (L, H) float64, 0 or 1."""
    view, share = detail(read.layout.images[0]), read.shares[0]
    mean = read.weights.mean(dim=2)
    cells = (at_cells(read, mean) if share is None else mean @ share.to(mean.device)).float().cpu()
    points = centres(view, size)
    seen = torch.from_numpy(~np.isnan(points[:, 0]))
    best = torch.where(seen, cells, torch.tensor(-1.0)).argmax(-1)
    return torch.from_numpy(_within(points, box))[best].double()


def _within(points: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    x, y = points[:, 0], points[:, 1]
    return np.asarray((x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3]))
