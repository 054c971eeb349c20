"""What a model family must tell the rest of the toolkit. One short file per family implements `Adapter`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from mmattn.adapters.layout import Layout
from mmattn.attention import RowCapture, Session
from mmattn.errors import MmattnError


@dataclass(frozen=True)
class Sample:
    """One request: upright RGB pictures, the user's words, and perhaps an answer to read with teacher forcing.

    Attributes:
        answer: text, or the exact token ids of an earlier generation.
    """

    images: tuple[Image.Image, ...]
    prompt: str
    answer: str | tuple[int, ...] | None = None

    @cached_property
    def image_keys(self) -> tuple[str, ...]:
        """A content hash of each picture: equal pictures are encoded once, and seeds do not depend on order."""
        return tuple(
            hashlib.sha256(repr((picture.size, picture.mode)).encode() + picture.tobytes()).hexdigest()
            for picture in self.images
        )


@dataclass(frozen=True)
class Pixels:
    """One picture as the vision tower wants it.

    Attributes:
        key: names everything that the features depend on; equal keys are encoded once.
        values: normalised, without a batch axis.
    """

    key: str
    values: torch.Tensor


@dataclass(frozen=True)
class Prepared:
    """One sample in tokens: ids (T,) with every image token expanded, its pictures, and where everything sits.

    Attributes:
        offsets: for each token, its character range in `text`.
        text: the rendered prompt, image tokens expanded.
    """

    ids: torch.Tensor
    pixels: tuple[Pixels, ...]
    layout: Layout
    text: str
    offsets: tuple[tuple[int, int], ...]


@dataclass
class Embedded:
    """A left-padded batch for the decoder: embeddings (B, T, D), mask (B, T) and positions (B, T)."""

    embeds: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


class Adapter(ABC):
    """The bridge to one family of transformers models. It never changes the model."""

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    config_key: ClassVar[str] = "text_config"

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @abstractmethod
    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Tokenise samples and preprocess their pictures (on the CPU)."""

    @abstractmethod
    def encode(self, pictures: Sequence[Pixels]) -> list[torch.Tensor]:
        """Vision features of each picture as the decoder sees them: (image tokens, D)."""

    @property
    @abstractmethod
    def decoder(self) -> nn.Module:
        """The stack of decoder layers, called with embeddings."""

    @property
    @abstractmethod
    def attention_layers(self) -> list[nn.Module]:
        """The decoder's attention modules, in order."""

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def image_token_id(self) -> int:
        token: int = self.model.config.image_token_id
        return token

    def session(self, capture: RowCapture | None = None) -> Session:
        return Session(self.model, self.attention_layers, self.config_key, capture)

    def embed(self, rows: Sequence[Prepared], features: Sequence[Sequence[torch.Tensor]]) -> Embedded:
        """Left-pad rows into one batch and put each row's vision features in place of its image tokens.

        Args:
            rows: what `prepare` made.
            features: for each row, the features of its pictures, in order.
        """
        ids, mask = left_pad([row.ids for row in rows], self.pad_token_id)
        # Places come from the layout: an answer that holds a placeholder token stays an answer.
        places = torch.zeros_like(mask, dtype=torch.bool)
        for index, row in enumerate(rows):
            places[index, [ids.shape[1] - row.layout.length + token for token in row.layout.image_tokens]] = True
        flat = [piece for row_features in features for piece in row_features]
        needed, given = int(places.sum()), sum(len(piece) for piece in flat)
        if needed != given:
            raise MmattnError(
                f"The vision tower gives {given} features for {needed} image tokens",
                "Use the processor that belongs to the model.",
            )
        ids, mask, places = ids.to(self.device), mask.to(self.device), places.to(self.device)
        embeds = self.model.get_input_embeddings()(ids)
        if flat:  # row-major order of the places is the order of the features: row by row, left to right
            embeds = embeds.masked_scatter(places[..., None].expand_as(embeds), torch.cat(flat).to(embeds))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return Embedded(embeds, mask, positions)

    def decode(self, batch: Embedded, cache: Cache) -> torch.Tensor:
        """One decoder call: hidden states (B, T, D) of the new tokens; `cache` grows by them."""
        hidden: torch.Tensor = self.decoder(
            inputs_embeds=batch.embeds,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token scores (..., V) in float32."""
        scores: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return scores.float()

    @property
    def pad_token_id(self) -> int:
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0


def left_pad(rows: Sequence[torch.Tensor], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack 1-D rows to the right: ids (B, T) and mask (B, T) with 1 on real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = row
        mask[index, width - len(row) :] = 1
    return ids, mask
