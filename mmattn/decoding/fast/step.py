"""One decode step over fixed buffers: a few kernels per layer, the same ones at every step, so that it can be captured.

Shapes: M rows, C slots of the cache, H query heads, G key heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from mmattn.decoding.fast import kernels
from mmattn.decoding.fast.blocks import (
    ONTO,
    PRODUCT,
    Blocks,
    attention_blocks,
    early,
    finished_apart,
    fitted,
    gating,
    overlapping,
    projection,
    splits,
)
from mmattn.decoding.fast.keeping import KeptRows
from mmattn.decoding.fast.parts import DecoderParts, LayerParts

# Takes a layer and its scores (M, H, 1, C) float32, -inf on slots without a visible key; gives the weights.
Rewrite = Callable[[int, torch.Tensor], torch.Tensor]
# Takes a layer and what its heads give, (M, 1, H, D); gives what they should.
Remix = Callable[[int, torch.Tensor], torch.Tensor]
# Rows of which one program rotates one head.
ROTATED = 4
# How many scores of a row that is kept a program may hold, and how many it finishes at once.
HELD, NORMALISED = 4096, 1024


class DecodeStep:
    """The decoder's work on one new token per row.

    Attributes:
        tokens: (M,) the tokens to read. length: () int32, slot of the new token. positions: (M,) int32, of rotation.
        begins: (M,) int32, first slot that holds a token of the row.
        hidden: (M, C) int8, 1 where a row must not look.
        logits: (M, V) float32, the result.
        scores: (M, H, 1, C) float32, attention of a layer that is rewritten, before the softmax; -inf where nothing is
            visible.
        spans: from which layer to which each piece goes; there are several where attention is kept.
        left: (M, exits, hidden), the hidden states that entered these layers.
    """

    def __init__(
        self,
        parts: DecoderParts,
        keys: torch.Tensor,
        values: torch.Tensor,
        last_position: int,
        *,
        hides: bool = False,
        rewrite: Rewrite | None = None,
        rewritten: frozenset[int] = frozenset(),
        remix: Remix | None = None,
        remixed: frozenset[int] = frozenset(),
        kept: KeptRows | None = None,
        exits: tuple[int, ...] = (),
    ) -> None:
        """`keys` and `values` (L, M, G, C, D) are the cache; layers of `rewritten` are rewritten, those of `remixed`
        have their heads' output changed. What enters layers of `exits` is left in `left`.

        The step comes in as many pieces as `kept` has: after each, the rows of its layers are there to be taken.
        """
        self.parts, self.keys, self.values = parts, keys, values
        self.hides, self.rewrite, self.rewritten = hides, rewrite, rewritten
        self.remix, self.remixed = remix, remixed
        _, rows, groups, slots, dim = keys.shape
        assert (groups, dim) == (parts.groups, parts.dim)
        self.rows, self.slots = rows, slots
        device, half = parts.device, parts.dtype
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.length = torch.zeros((), dtype=torch.int32, device=device)
        self.positions = torch.zeros(rows, dtype=torch.int32, device=device)
        self.begins = torch.zeros(rows, dtype=torch.int32, device=device)
        self.hidden = torch.zeros(rows, slots if hides else 1, dtype=torch.int8, device=device)
        width = (parts.heads + 2 * parts.groups) * dim
        self._qkv = torch.empty(rows, width, device=device, dtype=half)
        self._mixed = torch.empty(rows, parts.heads * dim, device=device, dtype=half)
        self._inner = torch.empty(rows, parts.inner, device=device, dtype=half)
        self._stream, self._ready = (torch.empty(rows, parts.hidden, device=device, dtype=half) for _ in range(2))
        blocks = fitted(ONTO, rows, parts.hidden, half.itemsize)
        self._blocks = triton.cdiv(parts.hidden, blocks.n)
        self._pieces = torch.empty(blocks.split if blocks.split > 1 else 0, rows, parts.hidden, device=device)
        self._arrivals = torch.zeros(self._blocks * triton.cdiv(rows, blocks.m), dtype=torch.int32, device=device)
        self._squares = torch.empty(self._blocks, rows, device=device)
        self.logits = torch.empty(rows, len(parts.head), device=device, dtype=torch.float32)
        self._splits = splits(rows * groups, slots, device)
        if kept is not None:
            self._splits = max(self._splits, -(-slots // HELD))
        lines = rows * parts.heads * self._splits
        self._part_out = torch.empty(lines, dim, device=device)
        self._part_max, self._part_sum = (torch.empty(lines, device=device) for _ in range(2))
        self._kept = kept
        ends = [piece[-1] + 1 for piece in kept.pieces[:-1]] if kept else []
        self.spans = list(zip([0, *ends], [*ends, len(parts.layers)], strict=True))
        self.scores = torch.empty(rows if rewritten else 0, parts.heads, 1, slots, device=device)
        self._none = torch.empty(1, device=device)
        self._overlap = overlapping(rows, device)
        self._product = {"EARLY": early(rows), **self._overlap}
        self._descriptors: dict[tuple[int, ...], TensorDescriptor] = {}
        self._exits = {layer: place for place, layer in enumerate(exits)}
        self.left = torch.empty(rows, len(exits), parts.hidden, device=device, dtype=half)
        self._cosines, self._sines = _rotations(parts, last_position)

    def reset(self) -> None:
        """Before another batch uses the buffers."""
        self.scores.fill_(-torch.inf)

    def run(self) -> None:
        """Read `tokens`, fill `logits`, and move on by one slot."""
        for number in range(len(self.spans)):
            self.piece(number)
        self.end()

    def piece(self, number: int) -> None:
        """The layers of one piece; the first one reads `tokens`."""
        parts = self.parts
        first, last = self.spans[number]
        if first == 0:
            kernels.embed[(self.rows,)](
                self.tokens, parts.embedding, parts.layers[0].attention_gain, self._stream, self._ready, self._squares,
                K=parts.hidden, BLOCK_K=triton.next_power_of_2(parts.hidden), **self._overlap,
            )  # fmt: skip
        gains = [*(one.attention_gain for one in parts.layers[1:]), parts.final_gain]
        for index in range(first, last):
            layer = parts.layers[index]
            pieces = self._blocks if index else 1  # in which the sums of squares come
            if index in self._exits:
                self.left[:, self._exits[index]] = self._stream
            self._project(index, pieces)
            self._attend(index)
            if self.remix is not None and index in self.remixed:
                heads = self._mixed.view(self.rows, 1, parts.heads, parts.dim)
                heads.copy_(self.remix(index, heads))
            self._onto_stream(self._mixed, layer.output, layer.mlp_gain)
            self._gated(layer, self._blocks)
            self._onto_stream(self._inner, layer.down, gains[index])

    def end(self) -> None:
        """After the last piece: `logits`, and one slot further."""
        self._read_out()
        self.length += 1
        self.positions += 1

    def _project(self, index: int, pieces: int) -> None:
        """Query of a layer, rotated; key and value into the cache."""
        parts, layer = self.parts, self.parts.layers[index]
        sizes = (parts.heads * parts.dim, *[parts.groups * parts.dim] * 2)
        blocks = projection(parts, self.rows)
        three = (layer.query, layer.key, layer.value)
        biases = [self._none if one.bias is None else one.bias for one in three]
        gains = (layer.query_gain, layer.key_gain)
        # Rotating at once takes whole blocks per head, and a norm of query and key whole heads.
        normed = gains[0] is not None
        rotate = not normed and blocks.n % 2 == 0 and parts.dim % blocks.n == 0
        x, *weights = self._read(blocks, self._ready, *(one.weight for one in three), halves=rotate)
        kernels.project[self._grid(blocks, *sizes)](
            x, self._squares, pieces, *weights, *biases, self._qkv, self.keys[index], self.values[index],
            self.positions, self._cosines, self._sines, self.length, self.rows, self.slots,
            H=parts.heads, G=parts.groups, D=parts.dim, K=parts.hidden, EPS=parts.eps,
            BIAS=layer.query.bias is not None, ROTATE=rotate, ONE=self.rows == 1, BLOCK_M=blocks.m, BLOCK_N=blocks.n,
            BLOCK_K=blocks.k, BLOCK_P=triton.next_power_of_2(pieces), num_warps=blocks.warps, num_stages=blocks.stages,
            **self._product,
        )  # fmt: skip
        if rotate:
            return
        kernels.rotate_and_store[(triton.cdiv(self.rows, ROTATED), parts.heads + 2 * parts.groups)](
            self._qkv, self._cosines, self._sines, *(self._none if one is None else one for one in gains),
            self.keys[index], self.values[index], self._none, self._none, self.positions, self.length, self.rows, 1,
            H=parts.heads, G=parts.groups, D=parts.dim, C=self.slots, EPS=parts.eps, QK_NORM=normed, LAST=False,
            BLOCK_D=triton.next_power_of_2(parts.dim // 2), BLOCK_M=ROTATED, num_warps=1, **self._overlap,
        )  # fmt: skip

    def _attend(self, index: int) -> None:
        rows = self._kept
        kept = rows.of_layer(index) if rows else None
        if index not in self.rewritten:
            self._attention(index, self._none, kept=kept)
            return
        assert self.rewrite is not None
        self._attention(index, self.scores, write=True, mix=False)
        weights = self.rewrite(index, self.scores).contiguous()
        if kept is not None and rows is not None:
            keep_rows(weights[None], rows.heads, rows.columns, kept[:, None], self.begins, self.length, final=True)
        self._attention(index, weights, read=True)

    def _attention(
        self,
        index: int,
        scores: torch.Tensor,
        *,
        kept: torch.Tensor | None = None,
        write: bool = False,
        read: bool = False,
        mix: bool = True,
    ) -> None:
        parts, parted, splits = self.parts, (self._part_out, self._part_max, self._part_sum), self._splits
        none, rows = self._none, self._kept
        keep, starts, place_of, each, count, apart = none, none, none, 1, 0, 0
        if kept is not None and rows is not None:
            keep, starts, place_of = kept, rows.starts, rows.place_of
            each, count, apart = self.rows // len(kept), kept.shape[2], kept.stride(0)
        cut = attention_blocks(parts, self.slots)
        alone = kept is not None and parts.heads == parts.groups
        tiles = triton.next_power_of_2(-(-self.slots // (splits * cut["BLOCK"]))) if alone else 0
        kernels.attention[(self.rows, parts.groups, splits)](
            self._qkv, self.keys[index], self.values[index], self.hidden, scores, keep, starts, place_of, *parted,
            self._mixed, self.begins, self.length, none, parts.scale, each, count, apart,
            H=parts.heads, G=parts.groups, D=parts.dim, C=self.slots, PARTS=splits, HIDES=self.hides,
            KEEP=kept is not None, WRITE=write, READ=read, MIX=mix, OWNED=False, BLOCK_N=NORMALISED,
            TILES=tiles, **cut, **self._overlap,
        )  # fmt: skip
        if mix and splits > 1:
            in_turn = kept is not None and finished_apart(self.rows)
            kernels.join_parts[(self.rows * parts.heads,)](
                *parted, self._mixed, keep, place_of, each, count, apart, H=parts.heads, D=parts.dim, PARTS=splits,
                KEEP=kept is not None, READ=read, BLOCK_P=triton.next_power_of_2(splits),
                BLOCK_D=triton.next_power_of_2(parts.dim), BLOCK_N=NORMALISED, num_warps=1 if kept is None else 4,
                **({"OVERLAP": False} if in_turn else self._overlap),
            )  # fmt: skip

    def _read_out(self) -> None:
        parts, head = self.parts, self.parts.head
        blocks = fitted(PRODUCT, self.rows, parts.hidden, self._stream.element_size())
        x, weight = self._read(blocks, self._ready, head)
        kernels.product[self._grid(blocks, len(head))](
            x, self._squares, self._blocks, weight, self.logits, self.rows, len(head), parts.hidden, parts.eps,
            self.rows == 1, blocks.m, blocks.n, blocks.k, triton.next_power_of_2(self._blocks),
            num_warps=blocks.warps, num_stages=blocks.stages, **self._product,
        )  # fmt: skip

    def _onto_stream(self, x: torch.Tensor, weight: torch.Tensor, gain: torch.Tensor) -> None:
        outputs, inputs = weight.shape
        blocks = fitted(ONTO, self.rows, inputs, x.element_size())
        x, weight = self._read(blocks, x, weight)
        kernels.product_onto[(*self._grid(blocks, outputs), blocks.split)](
            x, weight, self._stream, gain, self._ready, self._squares, self._pieces, self._arrivals, self.rows, outputs,
            inputs, self.rows == 1, blocks.split, blocks.m, blocks.n, blocks.k,
            num_warps=blocks.warps, num_stages=blocks.stages, **self._product,
        )  # fmt: skip

    def _gated(self, layer: LayerParts, pieces: int) -> None:
        parts = self.parts
        blocks = gating(parts, self.rows)
        x, gate, up = self._read(blocks, self._ready, layer.gate, layer.up)
        kernels.gated_product[self._grid(blocks, parts.inner)](
            x, self._squares, pieces, gate, up, self._inner, self.rows, parts.inner, parts.hidden, parts.eps,
            self.rows == 1, blocks.m, blocks.n, blocks.k, triton.next_power_of_2(pieces),
            num_warps=blocks.warps, num_stages=blocks.stages, **self._product,
        )  # fmt: skip

    def _read(
        self, blocks: Blocks, x: torch.Tensor, *weights: torch.Tensor, halves: bool = False
    ) -> list[torch.Tensor | TensorDescriptor]:
        """A product's input (M, K) and weights (N, K) as it reads them: several rows by tiles; `halves`: which are cut
        from both halves of a head.
        """
        if self.rows == 1:
            return [x, *weights]
        shape, dim = [blocks.n, blocks.k], self.parts.dim
        if halves and blocks.n < dim:
            shape = [1, 2, blocks.n // 2, blocks.k]
            weights = tuple(one.view(-1, 2, dim // 2, one.shape[1]) for one in weights)
        return [self._tiles(x, [blocks.m, blocks.k]), *(self._tiles(one, shape) for one in weights)]

    def _tiles(self, matrix: torch.Tensor, shape: list[int]) -> TensorDescriptor:
        """What the copy engine needs to bring tiles of `matrix`."""
        key = (matrix.data_ptr(), *shape)
        if key not in self._descriptors:
            self._descriptors[key] = TensorDescriptor.from_tensor(matrix, shape)
        return self._descriptors[key]

    def _grid(self, blocks: Blocks, *sizes: int) -> tuple[int, int]:
        return sum(triton.cdiv(one, blocks.n) for one in sizes), triton.cdiv(self.rows, blocks.m)


def keep_rows(
    scores: torch.Tensor,
    heads: torch.Tensor,
    columns: torch.Tensor,
    out: torch.Tensor,
    begins: torch.Tensor,
    length: torch.Tensor,
    *,
    final: bool = False,
) -> None:
    """Weights of `heads` at slots `columns` (B, N) into `out` (B, layers, heads, N), from `scores` (layers, M, H, 1, C)
    of rows whose tokens stand from `begins` (M,) to `length`; `final`: these are weights.
    """
    samples, layers, some, count = out.shape
    _, rows, every, _, slots = scores.shape
    kernels.keep_rows[(layers * samples * some,)](
        scores, heads, columns, out, begins, length, rows, every, slots, count, samples, some, rows // samples,
        out.stride(0), FINAL=final, BLOCK=512, num_warps=4,
    )  # fmt: skip


def _rotations(parts: DecoderParts, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (last + 1, D) by the model's own rule; text tokens count alike on every axis."""
    positions = torch.arange(last + 1, device=parts.device)[None]
    if hasattr(parts.rotary, "mrope_section"):
        positions = positions.expand(3, 1, -1)
    like = torch.empty(1, device=parts.device, dtype=parts.dtype)
    cosines, sines = parts.rotary(like, positions)
    return cosines[0].contiguous(), sines[0].contiguous()
