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
        weights: filled by the call: layer -> (B, H, R, N) float32, post-softmax, on the layer's device.
    """

    rows: torch.Tensor
    columns: torch.Tensor | None = None
    layers: tuple[int, ...] | None = None
    weights: dict[int, torch.Tensor] = field(default_factory=dict)

    def wants(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def store(self, layer: int, weights: torch.Tensor) -> None:
        """Keep `weights` (B, H, R, S) of one layer, reduced to the wanted columns."""
        if self.columns is not None:
            batch, heads, rows, _ = weights.shape
            index = self.columns.to(weights.device)[:, None, None, :].expand(batch, heads, rows, -1)
            weights = weights.gather(-1, index)
        self.weights[layer] = weights

    def stacked(self) -> torch.Tensor:
        """The captured layers, (layers, B, H, R, N) float32 on the CPU, in the order of `layers`."""
        order = sorted(self.weights) if self.layers is None else self.layers
        return torch.stack([self.weights[layer].cpu() for layer in order])
