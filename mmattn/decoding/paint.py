"""Fixing imbalanced attention, PAINT (Arif et al., arXiv 2501.12206; public code hasanar1f/llava-hallunication-fix).

PAI with two groups of image tokens, chosen by what the vision tower's class token looks at, summed over heads:

    local: the `share` with the most attention in the tower's first layer, those of the other group excepted
    summary: those above Q3 + 1.5 (Q3 - Q1) in its last layer but one, with Q1 and Q3 the quartiles over the tokens
    E'_j = E_j + g_h local |E_j|    for local j,    E_j + g_h summary |E_j|    for summary j,

in the row that decides the next token, before the softmax; then PAI's contrast with the answer without picture.

g_h is 1 in the public code. The paper lets heads differ by how much they look at the picture; no code shows how. Ours:
g_h = 1 + modulation (s_h / mean s - 1), with s_h the attention of head h on the picture in that row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number, whole
from mmattn.decoding.method import Branch, Card, Contrast, Step, without_pictures
from mmattn.decoding.pai import refined
from mmattn.errors import MmattnError

# A value is an outlier beyond this many ranges between the quartiles.
WHISKER = 1.5


@dataclass(frozen=True)
class PAINT(Contrast):
    """Amplify attention to two groups of image tokens, and contrast with the words alone.

    Attributes:
        local, summary: how much larger scores on the groups become; 0 leaves them.
        gamma: weight of the contrast; 1 switches the branch without picture off.
        beta: plausibility cut, relative to the most probable token.
        share: part of the image tokens that is local.
        modulation: how much heads that look at the picture are amplified more than others; 0 treats all alike, 1 in
            proportion.
        start, end: layers start..end - 1 are edited.
    """

    local: float = 0.7
    summary: float = 0.4
    gamma: float = 1.1
    beta: float = 0.1
    share: float = 0.25
    modulation: float = 0.0
    start: int = 2
    end: int = 32

    name: ClassVar[str] = "paint"
    card: ClassVar[Card] = Card(
        summary="Amplify attention to the image tokens that the vision tower's class token looks at; contrast as PAI.",
        source="PAINT, arXiv 2501.12206, code hasanar1f/llava-hallunication-fix",
        formula="public code; modulation of heads is ours, since the code has none",
        exact=True,
        branches=2,
        extra_passes="the vision tower twice; one row per sample with gamma=1",
        defaults_from="the paper's best; the code's script has local=0.9, summary=0.3",
    )

    def __post_init__(self) -> None:
        for name in ("local", "summary", "modulation"):
            number(f"PAINT {name}", getattr(self, name), 0)
        number("PAINT gamma", self.gamma, 1)
        for name in ("beta", "share"):
            number(f"PAINT {name}", getattr(self, name), 0, 1)
        whole("PAINT start", self.start, 0)
        whole("PAINT end", self.end, 0)

    def edits(self) -> tuple[Edit, ...]:
        if not self.local and not self.summary:
            return ()
        return (AmplifyGroups(self.local, self.summary, self.share, self.modulation, self.start, self.end),)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("no picture", sample=without_pictures),) if self.gamma != 1 else ()

    def contrast(self, step: Step) -> torch.Tensor:
        return refined(step.logits, self.gamma, self.beta)


@dataclass(frozen=True)
class AmplifyGroups(Edit):
    """See the module."""

    local: float
    summary: float
    share: float
    modulation: float
    start: int
    end: int

    branches: ClassVar[tuple[str, ...] | None] = ("plain",)
    last_row: ClassVar[bool] = True
    common: ClassVar[bool] = True
    tower: ClassVar[tuple[int, ...]] = (0, -2)

    def wants(self, layer: int, depth: int) -> bool:  # noqa: ARG002
        return self.start <= layer < self.end

    def blank(self, rows: int, keys: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:  # noqa: ARG002
        return {name: torch.zeros(rows, keys, dtype=torch.bool, device=device) for name in ("local", "summary")}

    def marks(self, looks: torch.Tensor) -> dict[str, torch.Tensor]:
        early, late = looks
        known = early.isfinite()
        low, high = late[known].quantile(torch.tensor([0.25, 0.75]))
        summary = known & (late > high + WHISKER * (high - low))
        local = torch.zeros_like(known)
        count = round(self.share * int(known.sum()))
        local[early.masked_fill(~known, -torch.inf).topk(count).indices] = True
        return {"local": local & ~summary, "summary": summary}

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        if "local" not in site.memory:
            raise MmattnError(
                "PAINT chooses image tokens by the vision tower, which a single forward does not ask",
                "Use generate(..., method=..., capture=Capture()) to see its attention.",
            )
        local, summary = (site.per_key(site.memory[name].to(scores.device)) for name in ("local", "summary"))
        gain = self.local * local + self.summary * summary
        if self.modulation:
            seen = (scores.softmax(-1) * site.image).sum(-1, keepdim=True)
            mean = seen.mean(1, keepdim=True).clamp(min=torch.finfo(seen.dtype).tiny)
            gain = gain * (1 + self.modulation * (seen / mean - 1))
        return torch.where(torch.isneginf(scores), scores, scores + gain * scores.abs())
