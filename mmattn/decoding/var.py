"""Visual Attention Redistribution (Kang et al., ICLR 2025; public code seilk/VisAttnSink).

Some tokens draw attention whatever they show: sinks. Heads that look at the picture, and not only at its sinks, get the
sinks' attention for the rest of the picture.

    sink_j  <=>  max over sink dimensions d of |x_jd| / sqrt(mean_d x_jd^2 + 1e-6)  >  tau
    s = sum of A_j over the picture,     r = (sum of A_j over the picture's sinks) / s
    where r <= rho and s >= summ:   A'_j = p A_j                      for every sink j, of picture and text
                                    A'_j = A_j + Omega A_j / sum A    for image tokens that are no sink,
                                    Omega = (1 - p) sum of A_j over the sinks

x are the hidden states that enter the layer. In rows of text after the picture, which go on summing to 1. Sinks belong
to a sample and are found at its prefill; tokens that are generated later are none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmattn.attention import Edit, Site
from mmattn.checks import number, whole
from mmattn.decoding.method import Card, Method
from mmattn.errors import MmattnError

# Published sink dimensions, by the language model inside.
PRESETS = {"llama-2-7b": (1415, 2533), "llama-2-13b": (2100, 4743)}
EPS = 1e-6


@dataclass(frozen=True)
class VAR(Method):
    """Give the attention of sink tokens to the rest of the picture.

    Attributes:
        tau: a token is a sink if a sink dimension of its normalised hidden state is larger than this.
        rho: heads are edited that give at most this share of their attention to the picture to its sinks.
        summ: heads are edited that give at least this much of their attention to the picture.
        p: what is left of a sink's attention; 1 is the plain model.
        dimensions: sink dimensions: "auto", "llama-2-7b", "llama-2-13b", or numbers such as "1415 2533". "auto" takes,
            per sample and layer, those in which the sequence's first token exceeds `tau`; that is our rule, for
            language models whose dimensions nobody published.
        start: first layer that is edited.
        spared: how many of the last layers are not.
    """

    tau: float = 20.0
    rho: float = 0.5
    summ: float = 0.2
    p: float = 0.6
    dimensions: str = "auto"
    start: int = 2
    spared: int = 1

    name: ClassVar[str] = "var"
    card: ClassVar[Card] = Card(
        summary="Give the attention of sink tokens to the rest of the picture, in heads that look at it.",
        source="VAR, ICLR 2025, code seilk/VisAttnSink",
        formula="public code; the search for sink dimensions (dimensions='auto') is ours",
        exact=True,
        branches=1,
        extra_passes="none",
        defaults_from="public code, for LLaVA-1.5-7B; the paper is said to choose rho per kind of task",
        presets={
            "LLaVA-1.5-7B": "var(dimensions='llama-2-7b')",
            "LLaVA-1.5-13B": "var(dimensions='llama-2-13b')",
            "general questions, as is said": "var(rho=0.8)",
            "vision-centric questions, as is said": "var(rho=0.9)",
        },
    )

    def __post_init__(self) -> None:
        number("VAR tau", self.tau, 0)
        for name in ("rho", "summ", "p"):
            number(f"VAR {name}", getattr(self, name), 0, 1)
        whole("VAR start", self.start, 0)
        whole("VAR spared", self.spared, 0)
        _dimensions(self.dimensions)

    def edits(self) -> tuple[Edit, ...]:
        if self.p == 1:
            return ()
        chosen = _dimensions(self.dimensions)
        return (Redistribution(self.tau, self.rho, self.summ, self.p, chosen, self.start, self.spared),)


def _dimensions(given: str) -> tuple[int, ...]:
    """The numbers that `given` names; none for "auto"."""
    if given in PRESETS:
        return PRESETS[given]
    words = given.replace(",", " ").split() if isinstance(given, str) else []
    if given != "auto" and not (words and all(word.isdecimal() for word in words)):
        known = ", ".join(PRESETS)
        raise MmattnError(f"VAR does not know the dimensions {given!r}", f'Write "auto", {known}, or "1415 2533".')
    return () if given == "auto" else tuple(map(int, words))


def normalised(states: torch.Tensor) -> torch.Tensor:
    """How large each dimension of hidden states (..., D) is beside their root mean square: (..., D) float32."""
    states = states.float()
    return (states * torch.rsqrt(states.square().mean(-1, keepdim=True) + EPS)).abs()


@dataclass(frozen=True)
class Redistribution(Edit):
    """See the module. `dimensions` empty: those of the first token."""

    tau: float
    rho: float
    summ: float
    p: float
    dimensions: tuple[int, ...]
    start: int
    spared: int

    states: ClassVar[bool] = True

    def wants(self, layer: int, depth: int) -> bool:
        return self.start <= layer < depth - self.spared

    def blank(self, rows: int, keys: int, heads: int, device: torch.device) -> dict[str, torch.Tensor]:  # noqa: ARG002
        return {"sinks": torch.zeros(rows, keys, dtype=torch.bool, device=device)}

    def scores(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        """Only looks: the finite scores tell where each sample begins."""
        site.recall("sinks", lambda: self._sinks(scores, site))
        return scores

    def weights(self, weights: torch.Tensor, site: Site) -> torch.Tensor:
        sink = site.per_key(site.memory["sinks"])
        rest = weights * (site.image & ~sink)
        whole_rest = rest.sum(-1, keepdim=True)
        of_sinks = (weights * (site.image & sink)).sum(-1, keepdim=True)
        picture = of_sinks + whole_rest
        chosen = (of_sinks <= self.rho * picture) & (picture >= self.summ) & (whole_rest > 0)
        freed = (1 - self.p) * (weights * sink).sum(-1, keepdim=True)
        # Where a head is not chosen, sinks keep all and the rest gets nothing.
        share, taken = rest / torch.where(chosen, whole_rest, 1.0), chosen.to(weights.dtype)
        return torch.where(sink, weights * (1 - (1 - self.p) * taken), torch.addcmul(weights, share, freed * taken))

    def _sinks(self, scores: torch.Tensor, site: Site) -> torch.Tensor:
        """(B, keys) bool."""
        if site.states is None:
            raise RuntimeError("VAR needs hidden states")
        size = normalised(site.states.to(scores.device))
        if self.dimensions:
            if max(self.dimensions) >= size.shape[-1]:
                raise MmattnError(
                    f"VAR's dimension {max(self.dimensions)} is not among the {size.shape[-1]} of this model",
                    'Use dimensions="auto", or those of this language model.',
                )
            # One by one: a list of indices would come from the host, which a captured prefill does without.
            return torch.stack([size[..., one] for one in self.dimensions]).amax(0) > self.tau
        seen = (scores[:, 0, :, : size.shape[1]] > torch.finfo(torch.float32).min / 2).any(1)
        first = size[torch.arange(len(size), device=size.device), seen.int().argmax(-1)]
        large = (first > self.tau)[:, None, :]
        return (size * large).amax(-1) > self.tau
