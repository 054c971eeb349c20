"""An answer about one region of a picture: the latent is found on the prefill, the answer is decoded with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from mmattn.adapters import Adapter, Prepared, Sample, Shares
from mmattn.attention import RowCapture
from mmattn.decoding.engine import Generation, run
from mmattn.decoding.features import Features
from mmattn.decoding.method import Branch, Card, Contrast, Step, contrasted
from mmattn.decoding.requests import Options, Request
from mmattn.decoding.sampling import Sampling
from mmattn.errors import MmattnError
from mmattn.referring.latent import ControlMLLM, descend
from mmattn.referring.region import Region


@dataclass(frozen=True)
class Referred:
    """An answer about a region.

    Attributes:
        answer: what the model said.
        activations: the part of the attention on the picture that lies in the region: without the latent, and after
            each step.
    """

    answer: Generation
    activations: tuple[float, ...]

    @property
    def text(self) -> str:
        return self.answer.text


def refer(
    adapter: Adapter,
    sample: Sample,
    region: Region,
    how: ControlMLLM,
    *,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    seed: int = 0,
) -> Referred:
    """The answer to a sample of one picture, about `region` of it."""
    if len(sample.images) != 1:
        raise MmattnError(f"A region is of one picture, the prompt has {len(sample.images)}", "Give one picture.")
    prepared = adapter.prepare([sample])[0]
    shares: Shares = {}
    with torch.inference_mode(False), torch.no_grad():
        features = adapter.encode(prepared.pixels, shares)[0]
    start = features.new_zeros(len(features), adapter.model.get_input_embeddings().embedding_dim, dtype=torch.float32)
    found = descend(how, _activation(adapter, prepared, features, shares, region, how), start)
    # The picture with its latent is another picture: under a name of its own, it is not encoded again.
    name = hashlib.sha256(found.latent.cpu().numpy().tobytes()).hexdigest()
    pixels = replace(prepared.pixels[0], key=f"{prepared.pixels[0].key} {name}")
    known = Features()
    known.keep(pixels.key, _with(features, found.latent))
    request = Request(
        sample, replace(prepared, pixels=(pixels,)), pixels.key, 0, min(max_new_tokens, adapter.room(prepared))
    )
    options = Options(Referring(how.contrast, how.beta), Sampling(), stop_ids, seed)
    return Referred(run(adapter, [request], options, 1, features=known)[0], found.activations)


def _activation(
    adapter: Adapter,
    prepared: Prepared,
    features: torch.Tensor,
    shares: Shares,
    region: Region,
    how: ControlMLLM,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What part of the attention on the picture lies in the region, as a function of the latent (N, D)."""
    shown = prepared.layout.images[0]
    share = shares.get(prepared.pixels[0].key)
    weight = torch.from_numpy(region.cells(shown)).to(features.device)
    if not weight.any():
        raise MmattnError(
            f"The {region.kind} lies where the model sees nothing of the picture", "The processor cuts its edges away."
        )
    places = torch.zeros_like(weight)
    first = 0 if shown.mixed else shown.tokens.start
    places[[token - first for view in shown.views for token in view.tokens]] = 1

    def activation(latent: torch.Tensor) -> torch.Tensor:
        batch = adapter.embed([prepared], [[_with(features, latent)]])
        columns = batch.columns.image[0].nonzero()[:, 0][None]
        rows = batch.columns.rows if how.rows == "text" else torch.tensor([[-1]])
        capture = RowCapture(rows, columns, how.layers(adapter.depth))
        with adapter.session(capture):
            adapter.decode(batch)
        looked = capture.stacked().mean(dim=(0, 1, 2, 3))
        if share is not None:
            looked = looked @ share.to(looked)
        return (looked * weight).sum() / (looked * places).sum()

    return activation


def _with(features: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """Features (N, D or more) with the latent (N, D) added to what stands in the image tokens' place."""
    more = features.shape[1] - latent.shape[1]
    return features + torch.nn.functional.pad(latent, (0, more)).to(features)


@dataclass(frozen=True)
class Referring(Contrast):
    """(1 + weight) z - weight z' over plausible tokens, z' without the latent; with weight 0, z alone."""

    weight: float = 0.0
    beta: float = 0.1

    name: ClassVar[str] = "referring"
    card: ClassVar[Card] = Card(
        summary="Decode with a latent on the picture, against the picture without it.",
        source="ControlMLLM++, code mrwu-mac/ControlMLLM",
        formula="reconstruction: the contrast is that of VCD",
        exact=False,
        branches=2,
        extra_passes="the latent's steps, each a forward and a backward pass of the prompt",
        defaults_from="public code",
    )

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("without latent", pixels=lambda values, _: values),) if self.weight else ()

    def contrast(self, step: Step) -> torch.Tensor:
        return contrasted(step.logits, self.weight, self.beta)
