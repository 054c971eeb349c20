"""V-SEAM's modulation of heads (EMNLP 2025; public code petergit1/V-SEAM): heads that help are made louder.

    Delta_lh = mean over questions of p(right answer) - p(right answer | head h of layer l ablated)
    scale_lh = clip(1 + strength Delta_lh, 0, 2),   1 where |Delta_lh| < epsilon;   A_lh is multiplied by it, everywhere

A_lh is what the head gives before the output projection. The scores are measured by `measure_heads` of
`mmattn.decoding.ablation`, or `mmattn heads seam`, on questions that are then no good for reporting.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number
from mmattn.decoding.method import Card, Method
from mmattn.errors import MmattnError, first_line

Table = tuple[tuple[float, ...], ...]
MEASURE = "Measure them by `mmattn heads seam --out heads.json`."


@dataclass(frozen=True)
class VSEAM(Method):
    """Multiply the output of each head by what it does for right answers.

    Attributes:
        strength: lambda; 0 is the plain model.
        epsilon: heads whose score is smaller than this are left alone.
        scores: file of the heads' scores.
        digest: beginning of the file's SHA-256; filled in, so that results tell which scores were used. Where it is
            given, the file must have it.
    """

    strength: float = 1.0
    epsilon: float = 0.0
    scores: str = ""
    digest: str = ""

    name: ClassVar[str] = "v-seam"
    card: ClassVar[Card] = Card(
        summary="Multiply each head's output by what ablating it does to right answers; scores are measured before.",
        source="V-SEAM, EMNLP 2025, code petergit1/V-SEAM",
        exact=True,
        branches=1,
        extra_passes="none; once per model, a forward for each head and question",
        defaults_from="public code; its scores are for its questions, measure your own",
    )

    def __post_init__(self) -> None:
        number("V-SEAM strength", self.strength, 0)
        number("V-SEAM epsilon", self.epsilon, 0)
        if not isinstance(self.scores, str) or not isinstance(self.digest, str):
            raise MmattnError("V-SEAM scores and digest must be text", "Write scores='heads.json'.")
        if self.scores:
            found = _digest(_bytes(self.scores))
            if self.digest and found != self.digest:
                raise MmattnError(f"{self.scores} has the digest {found}, not {self.digest}", "Take the file it was.")
            object.__setattr__(self, "digest", found)

    def edits(self) -> tuple[Edit, ...]:
        if not self.strength:
            return ()
        table = _table(self.scores, self.digest) if self.scores else ()
        return (Modulate(tuple(tuple(map(self._scale, row)) for row in table)),)

    def _scale(self, delta: float) -> float:
        return 1.0 if abs(delta) < self.epsilon else min(max(1 + self.strength * delta, 0.0), 2.0)


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MmattnError(
            f"Cannot read the head scores {path} ({error.strerror or first_line(error)})", MEASURE
        ) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


@lru_cache(maxsize=16)
def _table(path: str, digest: str) -> Table:
    """Delta (L, H) from a file whose content has not changed since the method was made."""
    content = _bytes(path)
    if _digest(content) != digest:
        raise MmattnError(f"{path} has changed since this method was made", "Make the method anew.")
    try:
        rows = json.loads(content)["scores"]
        table = tuple(tuple(float(one) for one in row) for row in rows)
    except (ValueError, TypeError, KeyError) as error:
        raise MmattnError(f"{path} holds no head scores ({first_line(error)})", MEASURE) from error
    if not table or not table[0] or len({len(row) for row in table}) > 1:
        raise MmattnError(f"{path} holds no table of layers and heads", MEASURE)
    return table


@dataclass(frozen=True)
class Modulate(Edit):
    """Multiply what head h of layer l gives by `scales[l][h]`, in all rows."""

    scales: Table

    def wants(self, layer: int, depth: int) -> bool:
        if not self.scales:
            raise MmattnError("V-SEAM needs scores of the heads, scores='FILE'", MEASURE)
        if len(self.scales) != depth:
            raise MmattnError(
                f"V-SEAM's scores are of a model with {len(self.scales)} layers, this one has {depth}", MEASURE
            )
        return any(one != 1 for one in self.scales[layer])

    def blank(self, rows: int, keys: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:  # noqa: ARG002
        return {"factors": torch.ones(rows, 1, heads, 1, device=device)}

    def output(self, output: torch.Tensor, site: Site) -> torch.Tensor:
        factors = site.recall("factors", lambda: self._factors(output, site.layer))
        return output * factors.to(output.dtype)

    def _factors(self, output: torch.Tensor, layer: int) -> torch.Tensor:
        """(B, 1, H, 1), kept from the prefill on: a captured step takes no numbers from the host."""
        count = len(self.scales[layer])
        if count != output.shape[2]:
            raise MmattnError(
                f"V-SEAM's scores are of a model with {count} heads, this one has {output.shape[2]}", MEASURE
            )
        factors = torch.tensor(self.scales[layer], device=output.device)
        return factors[None, None, :, None].repeat(len(output), 1, 1, 1)
