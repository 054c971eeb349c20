"""scenes-instructblip: an InstructBLIP of its own, its processor, and a batched forward pass through the stock modules.

The Q-Former reads the question, so each question has a sequence of its own; the picture's patches are encoded once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AddedToken,
    BlipImageProcessor,
    GenerationConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
)

from mmattn.scenes.catalog import CATEGORIES
from training.batch import CAPTION, LONG, SHORT, Truth
from training.learner import WEIGHTS, Learner, text_loss
from training.processor import SIDE, Style, make_tokenizer
from training.tables import EMPTY, IGNORE, Lines, Tables

__all__ = ["STYLE", "InstructBlip", "make_model", "make_processor"]

PATCH, QUERIES = 14, 32
STYLE = Style(
    chat="",
    frame="{question}",
    plain="{question} {answer}",
    lead=" ",
    pad="<pad>",
    bos="<s>",
    eos="</s>",
    image="<image>",
    in_text=False,
)


def make_processor() -> InstructBlipProcessor:
    """Train the tokenizer, which serves the Q-Former, too, and join it with BLIP's preprocessing at 168 pixels."""
    tokenizer = make_tokenizer(STYLE)
    tokenizer.image_token = AddedToken(STYLE.image, normalized=False, special=True)
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    return InstructBlipProcessor(images, tokenizer, make_tokenizer(STYLE, padding="right"), num_query_tokens=QUERIES)


def make_model(processor: Any, tiny: bool = False) -> InstructBlipForConditionalGeneration:
    """A freshly initialised model; ``tiny`` for smoke tests."""
    tokenizer = processor.tokenizer
    size = -(-len(tokenizer) // 64) * 64
    seen, width = (32, 32) if tiny else (160, 192)
    special = {
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = InstructBlipVisionConfig(
        hidden_size=seen, intermediate_size=64 if tiny else 640, num_hidden_layers=2 if tiny else 4,
        num_attention_heads=2 if tiny else 5, image_size=SIDE, patch_size=PATCH, initializer_range=0.02,
    )  # fmt: skip
    former = InstructBlipQFormerConfig(
        vocab_size=size, hidden_size=seen, num_hidden_layers=2 if tiny else 3, num_attention_heads=2 if tiny else 5,
        intermediate_size=64 if tiny else 320, encoder_hidden_size=seen, cross_attention_frequency=1,
        max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=size, hidden_size=width, intermediate_size=64 if tiny else 512, num_hidden_layers=2 if tiny else 3,
        num_attention_heads=2 if tiny else 6, num_key_value_heads=2 if tiny else 6, max_position_embeddings=1024,
        tie_word_embeddings=True, **special,
    )  # fmt: skip
    config = InstructBlipConfig(
        vision_config=vision, qformer_config=former, text_config=text, num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(STYLE.image), tie_word_embeddings=True,
    )  # fmt: skip
    model = InstructBlipForConditionalGeneration(config)
    nn.init.normal_(model.query_tokens)  # zeros would stay alike
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=80, **special)
    return model


class InstructBlip(Learner):
    """Vision tower, Q-Former, Llama."""

    caption = CAPTION

    def __init__(self, model: Any, tables: Tables) -> None:
        super().__init__(model, tables)
        width = model.config.qformer_config.hidden_size
        self.patches = nn.Linear(width, len(CATEGORIES) + 1)
        self.answered = nn.Linear(width, 2)  # yes or no, out of the queries alone
        self.present = nn.Linear(width, len(CATEGORIES))  # everything in the picture, when a caption is asked for

    def inputs(self, parts: list[Lines], reply: Tensor, truth: Truth) -> tuple[Tensor, ...]:
        """Ids, labels and question mask of the short questions (B, 10, cells) and the caption (B, 1, cells); labels
        of the auxiliary heads.
        """
        asked = [*_stack(parts[:-1]), *_stack(parts[-1:])]
        valid = (parts[0].answer.any(-1).any(-1, keepdim=True)).expand_as(reply)
        return *asked, torch.where(valid, reply, IGNORE), (truth.counts > 0).float()

    def forward(self, pixels: Tensor, patch_labels: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.see(pixels)
        ids, labels, words, told, told_labels, told_words, reply, present = inputs
        kinds = torch.tensor([0] * SHORT + [1] * LONG + [2, 3], device=ids.device)
        weights = torch.tensor(WEIGHTS, device=ids.device)
        short, queries = self._ask(patches, ids, labels, words, weights[kinds])
        long, scene = self._ask(patches, told, told_labels, told_words, weights[-1:])
        guess = self.patches(patches[:, 1:]).float().flatten(0, 1)
        aux = functional.cross_entropy(guess, patch_labels.flatten(), ignore_index=IGNORE)
        yes = self.answered(queries[:, : SHORT + LONG].mean(2)).float()
        aux = aux + functional.cross_entropy(yes.flatten(0, 1), reply.flatten(), ignore_index=IGNORE)
        seen = self.present(scene[:, 0].mean(1)).float()
        return short + long, aux + functional.binary_cross_entropy_with_logits(seen, present)

    def _ask(
        self, patches: Tensor, ids: Tensor, labels: Tensor, words: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Text loss of questions (B, N, cells), and the Q-Former's queries (B, N, 32, width)."""
        queries = self.read(patches, ids, words)
        states = self._states(queries, ids)
        scores = self.model.language_model.lm_head(states[:, QUERIES:-1]).float()
        target = labels[:, :, 1:].flatten(0, 1)
        each = weights.expand(len(ids), -1).flatten()[:, None]
        batch, count = ids.shape[:2]
        return text_loss(scores, target, each) * count, queries.view(batch, count, QUERIES, -1)

    def see(self, pixels: Tensor) -> Tensor:
        """Features (B, 145, width) of the class token and the patches."""
        tower = self.model.vision_model
        hidden = tower.embeddings(pixels)
        for layer in tower.encoder.layers:
            hidden = layer(hidden)
        patches: Tensor = tower.post_layernorm(hidden)
        return patches

    def read(self, patches: Tensor, ids: Tensor, words: Tensor) -> Tensor:
        """The Q-Former's output (B * N, 32, width) after reading the cells `words` (B, N, cells) of `ids`."""
        former, (batch, count) = self.model.qformer, ids.shape[:2]
        queries = self.model.query_tokens.expand(batch * count, -1, -1)
        mask = words.flatten(0, 1)
        hidden = former.embeddings(input_ids=(ids * words).flatten(0, 1), query_embeds=queries)
        seen = torch.cat([torch.ones_like(mask[:, :1]).expand(-1, QUERIES), mask], 1)[:, None, None]
        for layer in former.encoder.layer:
            both = layer.attention(hidden, attention_mask=seen)
            # Queries of one picture's questions do not see each other here: its patches become keys once for all.
            asked = both[:, :QUERIES].reshape(batch, count * QUERIES, -1)
            asked = layer.crossattention(asked, encoder_hidden_states=patches).view(batch * count, QUERIES, -1)
            text = layer.feed_forward_chunk(both[:, QUERIES:])
            hidden = torch.cat([layer.feed_forward_chunk_query(asked), text], 1)
        return hidden[:, :QUERIES]

    def _states(self, queries: Tensor, ids: Tensor) -> Tensor:
        decoder = self.model.language_model.model
        told = decoder.embed_tokens(ids.flatten(0, 1))
        hidden = torch.cat([self.model.language_projection(queries).to(told.dtype), told], 1)
        where = torch.arange(hidden.shape[1], device=ids.device)[None].expand(len(hidden), -1)
        angles = decoder.rotary_emb(hidden, position_ids=where)
        for layer in decoder.layers:  # no mask: causal
            hidden = layer(hidden, position_ids=where, position_embeddings=angles)
        states: Tensor = decoder.norm(hidden)
        return states

    def next_token(self, pixels: Tensor, ids: Tensor, last: Tensor) -> Tensor:
        patches = self.see(pixels)
        cells = torch.arange(ids.shape[1], device=ids.device)
        words = (cells <= last[:, None]) & (ids != EMPTY)
        ids = ids.clamp(min=0)[:, None]
        states = self._states(self.read(patches, ids, words[:, None]), ids)
        scores: Tensor = self.model.language_model.lm_head(states[torch.arange(len(ids)), QUERIES + last])
        return scores.float()


def _stack(parts: list[Lines]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and question mask (B, N, cells) of parts with cells of their own."""
    cells = -(-max(part.length for part in parts) // 8) * 8  # the fast kernel wants a multiple of 8
    ids = torch.cat([_widen(part.ids, cells, EMPTY) for part in parts], 1)
    labels = torch.cat([_widen(part.labels(), cells, IGNORE) for part in parts], 1)
    return ids.clamp(min=0), labels, (ids != EMPTY) & (labels == IGNORE)


def _widen(rows: Tensor, cells: int, fill: int) -> Tensor:
    return functional.pad(rows, (0, cells - rows.shape[-1]), value=fill)
