"""The attention function that transformers calls: the fast kernel for every row, explicit weights for chosen ones.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head dimension, R rows asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from mmattn.attention.edit import Columns, Edit, Site
from mmattn.attention.rows import Call
from mmattn.attention.session import NAME, Session, active


@dataclass(frozen=True)
class Job:
    """One edit at one layer."""

    edit: Edit
    site: Site
    columns: Columns

    def may_edit(self, rows: torch.Tensor, length: int) -> torch.Tensor:
        """Whether the edit may change `rows` (B, R) of a call of `length` queries: (B, R) bool."""
        return may_edit(self.edit, self.columns, self.site.branches, rows, length)

    def touched(self, device: torch.device) -> torch.Tensor | None:
        """Rows of the batch (B,) whose branch the edit may change, or None for all."""
        return _touched(self.edit, self.site.branches, len(self.columns.image), device)


Work = list[Job]


def may_edit(edit: Edit, columns: Columns, branches: Sequence[str], rows: torch.Tensor, length: int) -> torch.Tensor:
    """Whether `edit` may change `rows` (B, R) of a call of `length` queries in batches of `branches`: (B, R) bool."""
    may = columns.eligible(rows)
    if edit.last_row:
        may = may & (rows == length - 1)
    touched = _touched(edit, branches, len(columns.image), rows.device)
    return may if touched is None else may & touched[:, None]


def _touched(edit: Edit, branches: Sequence[str], rows: int, device: torch.device) -> torch.Tensor | None:
    touched = edit.touches(branches, rows)
    return None if touched is None else touched.to(device)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' SDPA attention, bit for bit, but for rows that an edit of this module's layer changes.

    Readers of the layer see the rows they asked for, as edited.

    Args:
        query: (B, H, T, D) after rotary embedding. key, value: (B, G, S, D) after the cache, heads not repeated.
        attention_mask: bool (B or 1, 1, T, S) with True = visible, additive float of that shape, or None = causal.

    Returns:
        (B, T, H, D), and None in place of the weights.
    """
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    sessions = active(module)
    if not sessions:
        return output, None
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = Call(query, key, value, attention_mask, scale, bool(causal), kwargs.get("position_bias"))
    work = _work(sessions, call)
    if work:
        output = _edited(output, call, work)
    for session, layer in sessions:
        if session.capture is not None and session.capture.wants(layer):
            rewriting = [job for job in work if job.edit.rewrites_rows]
            if session.capture.postpone and query.shape[2] == 1 and not rewriting:
                session.capture.queries[layer] = query
                session.capture.mask, session.capture.scaling = attention_mask, scale
                continue
            rows = session.capture.rows.to(query.device) % query.shape[2]
            session.capture.store(layer, _weights(call, rows, rewriting))
    return output, None


def _work(sessions: list[tuple[Session, int]], call: Call) -> Work:
    """The edits of all sessions at this layer, in order."""
    found: Work = []
    for session, layer in sessions:
        if any(edit.wants(layer, session.depth) for edit in session.edits):
            found += [Job(edit, site, columns) for edit, site, columns in session.jobs(layer, call)]
    return found


def _edited(output: torch.Tensor, call: Call, work: Work) -> torch.Tensor:
    """`output` (B, T, H, D) with what the edits change computed anew."""
    rewriting = [job for job in work if job.edit.rewrites_rows]
    length = output.shape[1]
    for columns in {id(job.columns): job.columns for job in rewriting}.values():
        rows, valid = columns.rows, columns.valid
        if all(job.edit.last_row for job in rewriting if job.columns is columns):
            rows = torch.full_like(rows[:, :1], length - 1)
            valid = columns.eligible(rows)
        portions = [(rows, valid)]
        if rows.shape[1] > call.portion:
            portions = list(zip(*(torch.split(one, call.portion, 1) for one in (rows, valid)), strict=True))
        for part, mine in portions:
            output = _rewritten(output, call, part, mine, rewriting)
    for job in work:
        if job.edit.rewrites_output:
            changed = job.edit.output(output, job.site)
            touched = job.touched(output.device)
            output = changed if touched is None else torch.where(touched[:, None, None, None], changed, output)
    return output


def _rewritten(output: torch.Tensor, call: Call, rows: torch.Tensor, mine: torch.Tensor, work: Work) -> torch.Tensor:
    """`output` (B, T, H, D) with `rows` (B, R) anew where they are `mine` (B, R)."""
    weights = _weights(call, rows, work)
    # A row of padding, or the first of all once an edit has hidden it, sees nothing: its weights are no numbers.
    if output.shape[1] > 1 and (call.mask is not None or any(job.edit.every_row for job in work)):
        mine = mine & ~weights[:, 0].isnan().all(-1)
    new = call.output(weights).to(output.dtype)
    batch = torch.arange(len(rows), device=rows.device)[:, None]
    # Samples without a picture keep the fast kernel's result to the last bit.
    new = torch.where(mine[..., None, None], new, output[batch, rows])
    if not new.requires_grad:  # in place: a copy for each portion would cost as much as the rows themselves
        return output.index_put_((batch, rows), new)
    again = (rows[:, :, None] == rows[:, None, :]).tril(-1).any(-1)
    # A row that is there several times has one gradient.
    return output.index_put((batch, rows), torch.where(again[..., None, None], new.detach(), new))


def _weights(call: Call, rows: torch.Tensor, work: Work) -> torch.Tensor:
    """Weights (B, H, R, S) of `rows` after all edits, each applied where it may be."""
    work_at = [(job.edit, job.site, job.may_edit(rows, call.query.shape[2])[:, None, :, None]) for job in work]
    return rewritten(call.scores(rows), work_at)


def rewritten(scores: torch.Tensor, work: Sequence[tuple[Edit, Site, torch.Tensor]]) -> torch.Tensor:
    """Weights (B, H, R, S) from `scores` of that shape after all edits, each where its (B, 1, R, 1) bool allows."""
    for edit, site, where in work:
        if type(edit).scores is not Edit.scores:
            changed = edit.scores(scores, site)
            scores = scores if changed is scores else torch.where(where, changed, scores)
    weights = scores.softmax(-1)
    for edit, site, where in work:
        if type(edit).weights is not Edit.weights:
            weights = torch.where(where, edit.weights(weights, site), weights)
    return weights


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
