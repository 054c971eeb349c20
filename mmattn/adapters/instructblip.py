"""InstructBLIP: a Q-Former that has read the question turns a picture into a few query tokens before the prompt.

An image token covers no patch of its own: it is a mixture of patches, and the Q-Former's cross-attention says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from mmattn.adapters.base import Adapter, Pixels, Shares
from mmattn.adapters.layout import Affine, View
from mmattn.adapters.sample import Sample
from mmattn.adapters.text import Tokenised, plain_words, tokenise
from mmattn.adapters.tower import class_rows
from mmattn.attention import RowCapture, Session
from mmattn.errors import MmattnError


class InstructBlipAdapter(Adapter):
    """`InstructBlipForConditionalGeneration` with a decoder-only language model, such as Vicuna."""

    family = "instructblip"
    model_types = ("instructblip",)
    max_images = 1
    mixed = True

    def preprocess(self, pictures: Mapping[str, Image.Image]) -> list[Pixels]:
        values = self.processor.image_processor(images=list(pictures.values()), return_tensors="pt")["pixel_values"]
        return [Pixels(key, one, pictures[key].size) for key, one in zip(pictures, values, strict=True)]

    def received(self, inputs: Mapping[str, torch.Tensor]) -> list[Pixels]:
        asked = zip(inputs["qformer_input_ids"].cpu(), inputs["qformer_attention_mask"].cpu().bool(), strict=True)
        words = [ids[mask] for ids, mask in asked]
        found = zip(super().received(inputs), words, strict=True)
        return [replace(one, key=f"{one.key} {ids.tolist()}", words=ids) for one, ids in found]

    def conditioned(self, pixels: Pixels, text: str) -> Pixels:
        """The Q-Former reads the prompt, so features depend on it, too."""
        words = torch.tensor(self.processor.qformer_tokenizer(text)["input_ids"])
        longest = self.model.config.qformer_config.max_position_embeddings
        if len(words) > longest:
            raise MmattnError(
                f"The prompt takes {len(words)} tokens, the Q-Former reads {longest}", "Shorten the prompt."
            )
        return replace(pixels, key=f"{pixels.key} {text}", words=words)

    def views(self, pixels: Pixels) -> tuple[int, tuple[View, ...]]:
        patch = self.model.config.vision_config.patch_size
        rows, columns = pixels.values.shape[-2] // patch, pixels.values.shape[-1] // patch
        width, height = pixels.size  # resized without regard to the aspect ratio
        view = View(0, rows, columns, Affine(width / columns, height / rows))
        return int(self.model.config.num_query_tokens), (view,)

    def tokenised(self, sample: Sample, counts: Sequence[int]) -> Tokenised:
        """Image tokens come first, even before the beginning-of-sequence token; the chat template knows none."""
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        text, said = plain_words(self.processor, sample, token)
        read = tokenise(self.tokenizer, text, said, sample.answer)
        lead = sum(counts)
        ids, offsets = [self.image_token_id] * lead + read.ids, ((0, 0),) * lead + read.offsets
        return Tokenised(ids, offsets, lead + read.prompt_length, text, said)

    def stock_inputs(self, picture: Image.Image, prompt: str) -> dict[str, torch.Tensor]:
        text = self.tokenised(Sample((), prompt), ()).text
        return dict(self.processor(images=picture, text=text, return_tensors="pt"))

    def encode(self, pictures: Sequence[Pixels], shares: Shares | None = None) -> list[torch.Tensor]:
        """An image token is made of cells as the Q-Former's cross-attention says.

        That is the mean over its heads and cross-attending layers; the class token's share belongs to no place and
        is left out.
        """
        if shares is None:
            return list(self.model.language_projection(self._queries(pictures)))
        looking = [layer for layer in self.model.qformer.encoder.layer if layer.has_cross_attention]
        layers = [layer.crossattention.attention for layer in looking]
        rows = torch.arange(self.model.config.num_query_tokens).expand(len(pictures), -1)
        capture = RowCapture(rows)
        with Session(self.model.qformer, layers, "", capture):
            queries = self._queries(pictures)
        cells = capture.stacked().mean(dim=(0, 2))[..., 1:].cpu()
        shares.update((one.key, share) for one, share in zip(pictures, cells, strict=True))
        return list(self.model.language_projection(queries))

    def class_attention(self, pictures: Sequence[Pixels], layers: Sequence[int]) -> list[torch.Tensor]:
        """An image token has what its cells have, in the shares in which it is made of them."""
        shares: Shares = {}
        seen = list({id(one.values): None for one in pictures})
        rows = class_rows(self.model.vision_model, len(seen), layers, lambda: self.encode(pictures, shares))
        return [rows[:, seen.index(id(one.values))] @ shares[one.key].T for one in pictures]

    def _queries(self, pictures: Sequence[Pixels]) -> torch.Tensor:
        """The Q-Former's output (B, queries, its width); each picture goes through the vision tower once."""
        model = self.model
        tower = next(model.vision_model.parameters())
        distinct = {id(one.values): one.values for one in pictures}
        values = torch.stack(list(distinct.values())).to(tower.device, tower.dtype)
        seen = dict(zip(distinct, model.vision_model(pixel_values=values).last_hidden_state, strict=True))
        patches = torch.stack([seen[id(one.values)] for one in pictures])
        words, known = _right_pad([one.words for one in pictures if one.words is not None], tower.device)
        queries = model.query_tokens.expand(len(pictures), -1, -1)
        out = model.qformer(
            input_ids=words,
            attention_mask=torch.cat([torch.ones_like(queries[..., 0], dtype=torch.long), known], dim=1),
            query_embeds=queries,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones_like(patches[..., 0], dtype=torch.long),
        )
        hidden: torch.Tensor = out.last_hidden_state[:, : queries.shape[1]]
        return hidden

    @property
    def decoder(self) -> nn.Module:
        decoder: nn.Module = self.model.language_model.model
        return decoder

    @property
    def attention_layers(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self.model.language_model.model.layers]

    @classmethod
    def create(cls, model: PreTrainedModel, processor: Any) -> Adapter:
        from mmattn.adapters.instructblip_t5 import InstructBlipT5Adapter  # which extends this class

        kind = model.config.text_config.model_type
        if not model.config.use_decoder_only_language_model and kind == "t5":
            return InstructBlipT5Adapter(model, processor)
        if kind != "llama":
            raise MmattnError(
                f"InstructBLIP with a {kind} language model is not supported", "Use one with Vicuna or Flan-T5."
            )
        return cls(model, processor)


def _right_pad(rows: Sequence[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, W): the Q-Former counts positions from the left."""
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return ids.to(device), mask.to(device)
