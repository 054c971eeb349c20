"""Which rows of attention are wanted, and where they are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class RowCapture:
    """Collects chosen query rows of chosen layers during one forward call.

    Attributes:
        rows: (B, R) query indices within the call; negative ones count from the end.
        columns: (B, N) key indices to keep, or None for all S of them.
        layers: decoder layers to read, in the order in which `stacked` returns them; None for every layer.
        postpone: keep only the queries of single-token calls, so that all layers are read at once afterwards.
        weights: filled by the call: layer -> (B, H, R, N) float32, post-softmax, on the layer's device.
        queries: filled instead where postponed: layer -> (B, H, 1, D), with the call's `mask` and `scaling`.
        together: filled instead where all layers are read at once: (layers, B, H, R, N), by number.
    """

    rows: torch.Tensor
    columns: torch.Tensor | None = None
    layers: tuple[int, ...] | None = None
    postpone: bool = False
    weights: dict[int, torch.Tensor] = field(default_factory=dict)
    queries: dict[int, torch.Tensor] = field(default_factory=dict)
    mask: torch.Tensor | None = None
    scaling: float = 1.0
    together: torch.Tensor | None = None

    @property
    def last(self) -> bool:
        """Whether each sample's last row is all that is wanted."""
        return bool((self.rows == -1).all())

    def wants(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def store(self, layer: int, weights: torch.Tensor) -> None:
        """Keep `weights` (B, H, R, S) of one layer, reduced to the wanted columns."""
        self.weights[layer] = self._reduced(weights)

    def store_all(self, weights: dict[int, torch.Tensor]) -> None:
        """`store` for several layers at once."""
        if weights:
            together = self._reduced(torch.cat(list(weights.values())))
            self.weights.update(zip(weights, together.chunk(len(weights)), strict=True))

    def stacked(self) -> torch.Tensor:
        """The captured layers, (layers, B, H, R, N) float32, in the order of `layers`."""
        if self.together is not None:
            ascending = self.layers is None or list(self.layers) == sorted(self.layers)
            return self.together if ascending else self.together[torch.tensor(self.layers).argsort().argsort()]
        order = self._order(self.weights)
        device = self.weights[order[0]].device
        return torch.stack([self.weights[layer].to(device) for layer in order])

    def read_postponed(self, keys: torch.Tensor) -> torch.Tensor:
        """What `stacked` would return, computed now for all layers from `keys` (L, B, G, S, D) of the whole decoder."""
        order = self._order(self.queries)
        queries = torch.stack([self.queries[layer] for layer in order])
        if len(order) < len(keys):
            keys = keys[torch.tensor(order, device=keys.device)]
        depth, batch, heads, _, dim = queries.shape
        groups, length = keys.shape[2], keys.shape[3]
        folded = queries.reshape(depth * batch * groups, heads // groups, dim)
        scores = torch.bmm(folded, keys.reshape(depth * batch * groups, length, dim).transpose(1, 2))
        scores = scores.view(depth, batch, heads, 1, length).float() * self.scaling
        if self.mask is not None:
            mask = self.mask[..., :length]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
        self.queries.clear()
        return self._reduced(scores.softmax(-1).flatten(0, 1)).view(depth, batch, heads, 1, -1)

    def _order(self, found: dict[int, torch.Tensor]) -> list[int]:
        return sorted(found) if self.layers is None else list(self.layers)

    def _reduced(self, weights: torch.Tensor) -> torch.Tensor:
        """(B, H, R, S), or several times B stacked, to the wanted columns."""
        if self.columns is None:
            return weights
        times = len(weights) // len(self.columns)
        index = self.columns.to(weights.device).repeat(times, 1)[:, None, None, :]
        return weights.gather(-1, index.expand(*weights.shape[:3], -1))
