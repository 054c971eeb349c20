"""InstructBLIP with an encoder-decoder language model (Flan-T5): the decoder looks at the image by cross-attention.

The sequence of a sample is the encoder's tokens followed by the decoder's; the decoder's start token counts as the
last token of the prompt, so "last" and the answer are rows of the decoder, as in the other families.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from mmattn.adapters.base import Embedded, Prepared, left_pad
from mmattn.adapters.cache import cache_argument
from mmattn.adapters.instructblip import InstructBlipAdapter
from mmattn.adapters.sample import Sample
from mmattn.adapters.text import Tokenised
from mmattn.attention import Columns
from mmattn.errors import MmattnError


class InstructBlipT5Adapter(InstructBlipAdapter):
    """`InstructBlipForConditionalGeneration` with `T5ForConditionalGeneration` inside."""

    config_key = ""

    @property
    def attention_owner(self) -> PreTrainedModel:
        owner: PreTrainedModel = self.model.language_model.decoder  # its configuration is a copy of its own
        return owner

    @property
    def decoder(self) -> nn.Module:
        decoder: nn.Module = self.attention_owner
        return decoder

    @property
    def attention_layers(self) -> list[nn.Module]:
        return [block.layer[1].EncDecAttention for block in self.model.language_model.decoder.block]

    @property
    def blocks(self) -> list[nn.Module]:
        blocks: Any = self.decoder.block
        return list(blocks)

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.attention_owner.final_layer_norm
        return norm

    @property
    def window(self) -> int:
        """T5 counts relative positions and has no hard end; this only keeps a typing error from filling the memory."""
        return 4096

    def room(self, prepared: Prepared) -> int:  # noqa: ARG002
        """The prompt takes none of the decoder's room."""
        return self.window

    def tokenised(self, sample: Sample, counts: Sequence[int]) -> Tokenised:
        read = super().tokenised(sample, counts)
        at = read.prompt_length
        end = (len(read.text), len(read.text))
        ids, offsets = self.completed(read.ids[:at]) + read.ids[at:], (*read.offsets[:at], end, *read.offsets[at:])
        return Tokenised(ids, offsets, at + 1, read.text, read.said)

    def completed(self, ids: list[int]) -> list[int]:
        return [*ids, self.model.config.text_config.decoder_start_token_id]

    def stock_inputs(self, picture: Image.Image, prompt: str) -> dict[str, torch.Tensor]:
        start = torch.tensor([[self.model.config.text_config.decoder_start_token_id]])
        return {**super().stock_inputs(picture, prompt), "decoder_input_ids": start}

    def rows(self, positions: Sequence[int], prepared: Prepared) -> list[int]:
        first = prepared.layout.prompt_length - 1
        if min(positions) < first:
            raise MmattnError(
                "Tokens of the prompt are read by the encoder; only rows of the decoder can be read",
                'With this model choose rows "last" or "answer".',
            )
        return [position - first for position in positions]

    def embed(
        self,
        rows: Sequence[Prepared],
        features: Sequence[Sequence[torch.Tensor]],
        hidden: Sequence[torch.Tensor | None] | None = None,
    ) -> Embedded:
        """Run the encoder over the prompts; the batch is the decoder's."""
        encoded = [row.ids[: row.layout.prompt_length - 1] for row in rows]
        prompt = self.place(encoded, rows, features, hidden)
        states = self.model.language_model.encoder(
            inputs_embeds=prompt.embeds, attention_mask=prompt.seen
        ).last_hidden_state
        ids, mask = left_pad([row.ids[row.layout.prompt_length - 1 :] for row in rows], self.pad_token_id)
        ids, mask = ids.to(self.device), mask.to(self.device)
        extra = {"encoder_hidden_states": states, "encoder_attention_mask": prompt.seen}
        known = prompt.columns
        columns = Columns.of_encoder(known.image, ids.shape[1], known.instruction, known.marked)
        return Embedded(self.model.get_input_embeddings()(ids), mask, mask, columns, extra)

    def follow(self, batch: Embedded, tokens: torch.Tensor) -> Embedded:
        after = super().follow(batch, tokens)
        after.extra = batch.extra
        return after

    def new_cache(self) -> Cache:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def decode(self, batch: Embedded, cache: Cache | None = None) -> torch.Tensor:
        hidden: torch.Tensor = self.decoder(
            inputs_embeds=batch.embeds,
            attention_mask=batch.mask,
            use_cache=cache is not None,
            **{cache_argument(self.decoder): cache},
            **batch.extra,
        ).last_hidden_state
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        model = self.model.language_model
        return super().logits(hidden * model.model_dim**-0.5 if model.config.scale_decoder_outputs else hidden)
