"""What a model family must tell the rest of the toolkit. One short file per family implements `Adapter`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from mmattn.adapters.cache import SharedCache, cache_argument
from mmattn.adapters.layout import ImageLayout, Layout, View
from mmattn.adapters.sample import Sample
from mmattn.adapters.text import FALLBACK_TEMPLATE, Tokenised, covering, image_starts, render, tokenise
from mmattn.adapters.tower import without_class_token
from mmattn.attention import Columns, Edit, RowCapture, Session
from mmattn.errors import MmattnError

# What joins the hidden states (B T, D) after a layer: rows of them, and values.
Added = dict[int, tuple[torch.Tensor, torch.Tensor]]
# What each image token of a picture is made of, (image tokens, cells), by the picture's key.
Shares = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Pixels:
    """One picture as the vision tower wants it.

    Attributes:
        key: names everything that the features depend on; equal keys are encoded once.
        values: normalised, without a batch axis.
        size: (W, H) of the original.
        grid: (frames, rows, columns) of patches, where the family needs it.
        words: ids of the words that the features depend on, where they do.
    """

    key: str
    values: torch.Tensor
    size: tuple[int, int]
    grid: tuple[int, int, int] | None = None
    words: torch.Tensor | None = None


@dataclass(frozen=True)
class Prepared:
    """One sample in tokens: ids (T,) with every image token expanded, its pictures, and where everything sits.

    Attributes:
        offsets: for each token, its character range in `text`.
        text: the rendered prompt, image tokens expanded.
        said: character range of the user's words in `text`.
    """

    ids: torch.Tensor
    pixels: tuple[Pixels, ...]
    layout: Layout
    text: str
    offsets: tuple[tuple[int, int], ...]
    said: tuple[int, int]


@dataclass
class Embedded:
    """A left-padded batch for the decoder.

    Attributes:
        embeds: (B, T, D). mask: (B, T), 1 on real tokens.
        positions: (B, T), or (3, B, T) where the family counts time, height and width apart.
        columns: where the image tokens are, for edits.
        extra: what else this call needs; gone after the prefill.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    columns: Columns
    extra: dict[str, Any] = field(default_factory=dict)

    def select(self, rows: torch.Tensor) -> Embedded:
        """Of these rows of the batch."""
        positions = self.positions.index_select(self.positions.ndim - 2, rows)
        extra = {name: one.index_select(0, rows) for name, one in self.extra.items() if isinstance(one, torch.Tensor)}
        return Embedded(self.embeds[rows], self.mask[rows], positions, self.columns.select(rows), extra)


@dataclass(frozen=True)
class Placed:
    """Embedded ids with features at their image tokens.

    Attributes:
        embeds: (B, T, D).
        mask: (B, T), 1 on tokens. seen: (B, T), 1 on those that are not hidden.
        image: (B, T) bool, image tokens.
        columns: those that are not hidden, for edits.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    seen: torch.Tensor
    image: torch.Tensor
    columns: Columns


class Adapter(ABC):
    """The bridge to one family of transformers models. It never changes the model."""

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    config_key: ClassVar[str] = "text_config"
    max_images: ClassVar[int | None] = None
    mixed: ClassVar[bool] = False

    @classmethod
    def create(cls, model: PreTrainedModel, processor: Any) -> Adapter:
        """The adapter for `model`; a family of several shapes chooses here."""
        return cls(model, processor)

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self._words: dict[int, str] = {}

    def word(self, token: int) -> str:
        """One token as text."""
        if token not in self._words:  # the tokenizer takes longer than the GPU does for a token
            self._words[token] = self.tokenizer.decode([token])
        return self._words[token]

    @abstractmethod
    def preprocess(self, pictures: Mapping[str, Image.Image]) -> list[Pixels]:
        """The processor's work on pictures by key (on the CPU)."""

    @abstractmethod
    def views(self, pixels: Pixels) -> tuple[int, tuple[View, ...]]:
        """How many image tokens a picture takes, and its grids, counted from its first token."""

    @abstractmethod
    def encode(self, pictures: Sequence[Pixels], shares: Shares | None = None) -> list[torch.Tensor]:
        """Vision features of each picture as `embed` wants them: (image tokens, D or a multiple of it).

        Where image tokens are `mixed`, `shares` is filled, by the pictures' keys.
        """

    def received(self, inputs: Mapping[str, torch.Tensor]) -> list[Pixels]:
        """Pictures out of the processor's own output; their `size` is mostly not that of the original."""
        return [Pixels(content_key(one), one, (one.shape[-1], one.shape[-2])) for one in inputs["pixel_values"].cpu()]

    def class_attention(self, pictures: Sequence[Pixels], layers: Sequence[int]) -> list[torch.Tensor]:  # noqa: ARG002
        """What the vision tower's class token looks at in `layers`, summed over heads: (layers, image tokens) each.

        Negative layers count from the end. Tokens that show no place are not a number.

        Raises:
            MmattnError: the tower has no class token.
        """
        raise without_class_token(self.model.config.vision_config.model_type)

    def conditioned(self, pixels: Pixels, text: str) -> Pixels:  # noqa: ARG002
        """`pixels` as the prompt `text` makes them; for families whose features depend on the words, too."""
        return pixels

    def stock_inputs(self, picture: Image.Image, prompt: str) -> dict[str, torch.Tensor]:
        """What a user of plain transformers passes to the model for one picture and one prompt."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        own = getattr(self.processor, "chat_template", None)
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=None if own else FALLBACK_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        return dict(self.processor(images=[picture], text=[text], return_tensors="pt"))

    @property
    def attention_owner(self) -> PreTrainedModel:
        """The model whose configuration (at `config_key`) chooses the decoder's attention function."""
        return self.model

    @property
    def decoder(self) -> nn.Module:
        """The stack of decoder layers, called with embeddings."""
        decoder: nn.Module = self.model.model.language_model
        return decoder

    @property
    def attention_layers(self) -> list[nn.Module]:
        """The decoder's attention modules, in order."""
        return [layer.self_attn for layer in self.model.model.language_model.layers]

    @cached_property
    def depth(self) -> int:
        """How many layers the decoder has."""
        return len(self.attention_layers)

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder's layers, in order."""
        blocks: Any = self.decoder.layers
        return list(blocks)

    @property
    def final_norm(self) -> nn.Module:
        """What the last layer's output goes through before `logits`."""
        norm: Any = self.decoder.norm
        return cast(nn.Module, norm)

    @property
    def tied(self) -> bool:
        """Whether the head's weights are those of the embeddings."""
        return self.model.get_output_embeddings().weight is self.model.get_input_embeddings().weight

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Tokenise samples and preprocess their pictures, equal ones once (on the CPU)."""
        distinct = {key: img for one in samples for key, img in zip(one.image_keys, one.images, strict=True)}
        pixels = {one.key: one for one in self.preprocess(distinct)} if distinct else {}
        return [self.prepare_one(sample, tuple(pixels[key] for key in sample.image_keys)) for sample in samples]

    def prepare_one(self, sample: Sample, pixels: tuple[Pixels, ...]) -> Prepared:
        """Tokenise one sample whose pictures are preprocessed already."""
        if self.max_images is not None and len(pixels) > self.max_images:
            raise MmattnError(
                f"{self.family} takes {self.max_images} picture per prompt, not {len(pixels)}",
                "Ask about one at a time, or use another model.",
            )
        counts = [self.views(one)[0] for one in pixels]
        read = self.tokenised(sample, counts)
        found = self.laid_out(read, pixels)
        marked = {
            token for one in sample.marks for token in one.tokens(found.layout, read.text, read.offsets, read.said)
        }
        pixels = tuple(self.conditioned(one, read.text) for one in pixels)
        return replace(found, pixels=pixels, layout=replace(found.layout, marked=tuple(sorted(marked))))

    def laid_out(self, read: Tokenised, pixels: tuple[Pixels, ...]) -> Prepared:
        """Tokens with their pictures in place.

        Raises:
            MmattnError: there are more tokens than the model holds.
        """
        counts, grids = zip(*map(self.views, pixels), strict=True) if pixels else ((), ())
        ids, prompt_length = read.ids, read.prompt_length
        if len(ids) > self.window:
            raise MmattnError(
                f"The prompt takes {len(ids)} tokens with its pictures, the model holds {self.window}",
                "Shorten the prompt, or show fewer or smaller pictures.",
            )
        starts = image_starts(ids[:prompt_length], self.image_token_id, counts)
        images = tuple(
            ImageLayout(
                one.size,
                range(start, start + count),
                views if self.mixed else tuple(view.shifted(start) for view in views),
                self.mixed,
            )
            for one, start, count, views in zip(pixels, starts, counts, grids, strict=True)
        )
        layout = Layout(len(ids), prompt_length, images, covering(read.offsets[:prompt_length], read.said))
        return Prepared(torch.tensor(ids), pixels, layout, read.text, read.offsets, read.said)

    def completed(self, ids: list[int]) -> list[int]:
        """The tokens of a prompt, from those that the processor makes of it."""
        return ids

    def tokenised(self, sample: Sample, counts: Sequence[int]) -> Tokenised:
        """Prompt and answer in tokens, pictures of `counts` image tokens in their places."""
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return tokenise(self.tokenizer, *render(self.processor, sample, token, counts), sample.answer)

    def rows(self, positions: Sequence[int], prepared: Prepared) -> list[int]:  # noqa: ARG002
        """Query rows of the decoder's call that stand at `positions` of the unpadded sequence."""
        return list(positions)

    @property
    def window(self) -> int:
        """Tokens that the decoder was made for, prompt and answer together."""
        window: int = self.model.config.get_text_config().max_position_embeddings
        return window

    def room(self, prepared: Prepared) -> int:
        """How many tokens may follow a prompt; the last one is never fed back."""
        return self.window - prepared.layout.length + 1

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

    def session(
        self,
        capture: RowCapture | None = None,
        edits: Sequence[Edit] = (),
        branches: Sequence[str] = ("plain",),
        exits: Sequence[int] = (),
        *,
        watch: bool = True,
    ) -> Session:
        """Scoped access to the decoder's attention; with `edits`, its `columns` must be those of each decoder call."""
        layers, blocks = self.attention_layers, self.blocks
        return Session(
            self.attention_owner, layers, self.config_key, capture, edits, blocks, branches, exits, watch=watch
        )

    def embed(
        self,
        rows: Sequence[Prepared],
        features: Sequence[Sequence[torch.Tensor]],
        hidden: Sequence[torch.Tensor | None] | None = None,
    ) -> Embedded:
        """Left-pad rows into one batch and put each row's vision features in place of its image tokens.

        Args:
            rows: what `prepare` made.
            features: for each row, the features of its pictures, in order.
            hidden: for each row, which of its image tokens nothing may look at, (image tokens,) bool; None for none.
        """
        placed = self.place([row.ids for row in rows], rows, features, hidden)
        flat = [piece for row_features in features for piece in row_features]
        extra = self.prefill_extra(flat, placed.image)
        return Embedded(placed.embeds, placed.seen, self.positions(rows, placed.mask), placed.columns, extra)

    def place(
        self,
        rows: Sequence[torch.Tensor],
        prepared: Sequence[Prepared],
        features: Sequence[Sequence[torch.Tensor]],
        hidden: Sequence[torch.Tensor | None] | None = None,
    ) -> Placed:
        """Left-pad rows of ids, embed them, and put features at the image tokens that `prepared` tells."""
        ids, mask = left_pad(rows, self.pad_token_id)
        # Places come from the layout: an answer that holds a placeholder token stays an answer.
        places, covered, said, marked = (torch.zeros_like(mask, dtype=torch.bool) for _ in range(4))
        for index, (row, one) in enumerate(zip(rows, prepared, strict=True)):
            before = ids.shape[1] - len(row)
            tokens = torch.tensor(one.layout.image_tokens, dtype=torch.long) + before
            places[index, tokens] = True
            said[index, [before + token for token in one.layout.instruction]] = True
            marked[index, [before + token for token in one.layout.marked]] = True
            unseen = hidden[index] if hidden is not None else None
            if unseen is not None:
                covered[index, tokens[unseen.cpu()]] = True
        flat = [piece for row_features in features for piece in row_features]
        needed, given = int(places.sum()), sum(len(piece) for piece in flat)
        if needed != given:
            raise MmattnError(
                f"The vision tower gives {given} features for {needed} image tokens",
                "Use the processor that belongs to the model.",
            )
        columns = Columns.of_sequence(places)
        columns = replace(columns, image=places & ~covered, instruction=said, marked=marked & ~covered)
        columns = columns.to(self.device)
        ids, mask, places, covered = (one.to(self.device) for one in (ids, mask, places, covered))
        embeds = self.model.get_input_embeddings()(ids)
        if flat:  # row-major order of the places is the order of the features: row by row, left to right
            # Anything beyond the embeddings' width belongs to `extra`.
            values = torch.cat(flat)[:, : embeds.shape[-1]].to(embeds)
            embeds = embeds.masked_scatter(places[..., None].expand_as(embeds), values)
        return Placed(embeds, mask, mask.masked_fill(covered, 0), places, columns)

    def follow(self, batch: Embedded, tokens: torch.Tensor) -> Embedded:
        """The decoder's next call after `batch`: one new token (B,) in every row."""
        embeds = self.model.get_input_embeddings()(tokens[:, None])
        mask = torch.nn.functional.pad(batch.mask, (0, 1), value=1)
        return Embedded(embeds, mask, batch.positions[..., -1:] + 1, batch.columns.next())

    def positions(self, rows: Sequence[Prepared], mask: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Positions of a left-padded batch; padding does not count."""
        return (mask.cumsum(-1) - 1).clamp(min=0)

    def prefill_extra(self, features: Sequence[torch.Tensor], places: torch.Tensor) -> dict[str, Any]:  # noqa: ARG002
        """What else the decoder's prefill needs, from the pictures' features and their places (B, T)."""
        return {}

    def added(self, extra: dict[str, Any]) -> Added:  # noqa: ARG002
        """What `extra` adds to the hidden states on their way through the decoder."""
        return {}

    def span(self, batch: Embedded, rows: torch.Tensor, begins: torch.Tensor, lengths: torch.Tensor) -> Embedded:
        """Tokens `begins` (P,) and following, `lengths` (P,) of them, of `rows` (P,) of a batch: left-padded anew."""
        width = int(lengths.max())
        index = (begins + lengths - width)[:, None] + torch.arange(width, device=rows.device)
        inside = index >= begins[:, None]
        index, lines = index.clamp(min=0), rows[:, None]
        image, said, marked = batch.columns.keys(lambda one: one[lines, index] & inside)
        return Embedded(
            batch.embeds[lines, index],
            batch.mask[lines, index] * inside,
            batch.positions[..., lines, index],
            replace(Columns.of_sequence(image), instruction=said, marked=marked),
            self.span_extra(batch.extra, lines, index, inside),
        )

    def span_extra(
        self,
        extra: dict[str, Any],  # noqa: ARG002
        rows: torch.Tensor,  # noqa: ARG002
        index: torch.Tensor,  # noqa: ARG002
        inside: torch.Tensor,  # noqa: ARG002
    ) -> dict[str, Any]:
        """`extra` of a prefill of tokens `index` (P, T) of `rows` (P, 1), those that are `inside`."""
        return {}

    def new_cache(self) -> Cache:
        """An empty cache for `decode`."""
        config: Any = self.decoder.config
        alike = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
        places = set((getattr(self.model, "hf_device_map", None) or {"": 0}).values())
        return SharedCache(self.depth) if alike and len(places) == 1 else DynamicCache(config=config)

    def decode(self, batch: Embedded, cache: Cache | None = None) -> torch.Tensor:
        """One decoder call: hidden states (B, T, D) of the new tokens; a `cache` grows by them."""
        hidden: torch.Tensor = self.decoder(
            inputs_embeds=batch.embeds,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=cache is not None,
            **{cache_argument(self.decoder): cache},
            **batch.extra,
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


def content_key(values: torch.Tensor) -> str:
    """Names a picture by what the processor made of it."""
    return hashlib.sha256(values.float().numpy().tobytes()).hexdigest()


def left_pad(rows: Sequence[torch.Tensor], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack 1-D rows to the right: ids (B, T) and mask (B, T) with 1 on real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = row
        mask[index, width - len(row) :] = 1
    return ids, mask
