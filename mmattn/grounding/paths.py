"""Maps of all paths from the picture to a token, through every layer: attention flow and gradient-weighted relevance.

L layers, T tokens, N image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow

from mmattn.grounding.locator import Cells, Locator
from mmattn.grounding.reader import Job, Reader

# Capacities are whole numbers of this part of the weight 1.
UNIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Flow(Locator):
    """Attention flow (Abnar & Zuidema, ACL 2020): the maximum flow from the chosen tokens to each image token.

    Through a network of the tokens of every layer, with the capacities (A + I) / 2, A the mean over heads, in whole
    millionths. One maximum flow per image token, each over up to L T^2 / 2 edges, on the CPU: for small models.
    Decoder-only models.
    """

    name: ClassVar[str] = "flow"
    summary: ClassVar[str] = "The maximum flow through all layers to each image token; very slow"

    def maps(self, reader: Reader, jobs: Sequence[Job]) -> Iterator[Cells]:
        for job in jobs:
            image = job.prepared.layout.images[0].tokens
            flows = flow(reader.head_means(job).double().numpy(), job.positions, image)
            weights = torch.from_numpy(flows).float()
            yield self.cells(reader.attention(job, weights[None, None, None]))


@dataclass(frozen=True, kw_only=True)
class Relevance(Locator):
    """Gradient-weighted relevance (Chefer et al., ICCV 2021): R <- R + C R through the layers, R = I at first.

    C is attention times its gradient, negative products as 0, mean over heads; the gradient that of the score of the
    likeliest next token after each chosen one. Needs every row of every layer and head with its gradient, 2 L H T T
    floats, one query at a time. Decoder-only models.
    """

    name: ClassVar[str] = "relevance"
    summary: ClassVar[str] = "Attention times its gradient, multiplied through the layers; slow, needs much memory"

    def maps(self, reader: Reader, jobs: Sequence[Job]) -> Iterator[Cells]:
        for job in jobs:
            layers = reader.gradient_means(job)
            share = torch.zeros(len(job.positions), layers.shape[-1])
            share[torch.arange(len(job.positions)), list(job.positions)] = 1
            for layer in layers.flip(0):
                share = share + share @ layer
            image = job.prepared.layout.images[0].tokens
            yield self.cells(reader.attention(job, share[None, None, :, image.start : image.stop]))


def flow(layers: NDArray[np.float64], sources: Sequence[int], targets: Sequence[int]) -> NDArray[np.float64]:
    """The maximum flow from the tokens `sources` after the last layer, together, to each of `targets` before the first.

    Args:
        layers: (L, T, T), what each token (row) takes from each (column); none takes from later ones.

    Returns:
        (len(targets),); at most 1 for each source.
    """
    depth = len(layers)
    top = max(sources) + 1
    flows = []
    for target in targets:
        # What stands before the target cannot be reached from it, nor what stands after all sources.
        span = slice(min(target, top), top)
        width = top - span.start
        if not width:
            flows.append(0.0)
            continue
        mixed = (layers[:, span, span] + np.eye(width)) / 2
        capacities = np.rint(mixed * UNIT).astype(np.int32)
        level, row, column = capacities.nonzero()
        # Nodes: token t before layer l is l * width + t; the source stands after all.
        begins, ends = (level + 1) * width + row, level * width + column
        source = (depth + 1) * width
        own = np.array([depth * width + one - span.start for one in sources if one >= span.start])
        begins, ends = np.append(begins, np.full(len(own), source)), np.append(ends, own)
        amounts = np.append(capacities[level, row, column], np.full(len(own), UNIT, dtype=np.int32))
        network = coo_array((amounts, (begins, ends)), shape=(source + 1, source + 1)).tocsr()
        flows.append(maximum_flow(network, source, target - span.start).flow_value / UNIT)
    return np.array(flows)
