"""One training batch: what is in each picture, patch labels, and questions with their answers, all on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmattn.scenes import rng
from mmattn.scenes.bank import SIZES
from mmattn.scenes.catalog import CATEGORIES
from mmattn.scenes.layout import CANVAS, SLOTS, Layout, theme_table
from mmattn.scenes.render import Bank, visible
from training.processor import GRID
from training.tables import EMPTY, IGNORE, Lines, Tables

__all__ = ["CAPTION", "LONG", "SHORT", "Truth", "coverage", "partner_table", "patch_labels", "questions", "truth_of"]

SHORT, LONG, CAPTION = 5, 3, 76  # yes/no questions with short and long wording; cells of the caption at least
_ADVERSE = 300  # negatives per 1000 that ask for the missing partner of something present


@dataclass(frozen=True)
class Truth:
    """What is in B pictures: ``present`` (B, 7) per slot, ``counts`` (B, 65) per category, ``place`` (B, 7)."""

    present: Tensor
    counts: Tensor
    place: Tensor


def partner_table(device: str) -> Tensor:
    """Partner index of each category, EMPTY where it has none, (65,)."""
    members, _, _ = theme_table(device)
    pairs = members[members[:, 1] >= 0]
    table = torch.full((len(CATEGORIES),), EMPTY, device=device)
    table[pairs[:, 0]], table[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    return table


def truth_of(layout: Layout, shown: Tensor, bank: Bank) -> Truth:
    """Presence by the annotation rule from visible pixel counts (B, 7); places from the centres of the sprites."""
    category = layout.category.clamp(min=0)
    full = bank.areas[category, layout.variant, layout.size]
    present = visible(layout.category, shown, full)
    counts = torch.zeros(len(category), len(CATEGORIES), dtype=torch.int64, device=category.device)
    counts.scatter_add_(1, category, present.long())
    pixels = torch.tensor(SIZES, device=category.device)[layout.size]
    column = (3 * (2 * layout.left + pixels)) // (2 * CANVAS)
    row = (3 * (2 * layout.top + pixels)) // (2 * CANVAS)
    return Truth(present, counts, row.clamp(max=2) * 3 + column.clamp(max=2))


def coverage(owner: Tensor) -> Tensor:
    """Pixels of each patch that each slot owns, (B, 144, 7), from (B, 336, 336)."""
    side = CANVAS // GRID
    cells = owner.reshape(-1, GRID, side, GRID, side)
    return torch.stack([(cells == slot).sum((2, 4)) for slot in range(SLOTS)], -1).flatten(1, 2)


def patch_labels(layout: Layout, cover: Tensor) -> Tensor:
    """Category of each patch (B, 144) from :func:`coverage`: 0 background (under a tenth covered), 1.. category
    (over 30 % covered by it), IGNORE in between and where the object is too faint to see."""
    side = CANVAS // GRID
    most, slot = cover.max(-1)
    faint = layout.ghost.gather(1, slot)
    label = layout.category.gather(1, slot) + 1
    label = torch.where((most * 10 < side * side * 3) | faint, IGNORE, label)
    return torch.where(cover.sum(-1) * 10 < side * side, 0, label)


def _pick(key: Tensor, stream: int, allowed: Tensor, draws: int) -> Tensor:
    """Uniform choices among the allowed columns of each row, with replacement: (B, draws); column 0 if none is."""
    count = allowed.sum(-1, keepdim=True).clamp(min=1)
    rank = rng.integers(key, stream, (draws,), 0, 1 << 24) % count
    running = allowed.long().cumsum(-1)
    return (running[:, None, :] <= rank[..., None]).sum(-1).clamp(max=allowed.shape[-1] - 1)


def _negatives(key: Tensor, layout: Layout, counts: Tensor, partner: Tensor, draws: int) -> Tensor:
    """Absent categories to ask for (B, draws): a missing partner, a member of the theme, or anything."""
    device = str(key.device)
    members, theme_units, sizes = theme_table(device)
    absent = counts == 0
    anything = _pick(key, 60, absent, draws)
    inside = rng.integers(key, 61, (draws,), 0, 1 << 16) % sizes[layout.theme][:, None]
    pair = members[theme_units[layout.theme[:, None], inside]]
    side = rng.integers(key, 62, (draws,), 0, 1)
    related = torch.where((side == 1) & (pair[..., 1] >= 0), pair[..., 1], pair[..., 0])
    related = torch.where(absent.gather(1, related), related, anything)
    missing = absent & (partner >= 0) & ~absent[:, partner.clamp(min=0)]
    adverse = torch.where(missing.any(-1, keepdim=True), _pick(key, 63, missing, draws), related)
    kind = rng.integers(key, 64, (draws,), 0, 999)
    return torch.where(kind < _ADVERSE, adverse, torch.where(kind < 2 * _ADVERSE, related, anything))


def _caption(key: Tensor, layout: Layout, truth: Truth, tables: Tables, partner: Tensor, cells: int) -> Lines:
    """The caption segment, (B, cells): reading order, but partners side by side and the faint one second."""
    batch = len(key)
    slot = torch.arange(SLOTS, device=key.device)
    category = torch.where(truth.present, layout.category, EMPTY)
    order = truth.place * 16 + slot + layout.ghost.long() * 4096
    same = (category[:, :, None] == category[:, None, :]) & truth.present[:, :, None]
    mate = (partner[category.clamp(min=0)][:, :, None] == category[:, None, :]) & truth.present[:, :, None]
    first = truth.present & ~(same & (order[:, None, :] < order[:, :, None])).any(-1)
    group = torch.where(same | mate, order[:, None, :], 1 << 20).amin(-1)
    rank = torch.where(first, group * 8192 + order, 1 << 40).argsort(dim=-1, stable=True)
    category = torch.where(first, category, EMPTY).gather(1, rank).clamp(min=0)
    used = first.gather(1, rank)
    total = used.sum(-1, keepdim=True)
    count = truth.counts.gather(1, category).clamp(1, 3)
    style = rng.integers(key, 70, (), 0, 1)
    joint = torch.where(slot == 0, 0, torch.where(slot == total - 1, 2, 1))
    place = tables.place[truth.place.gather(1, rank)]
    place = torch.where(((count == 1) & (style == 1)[:, None])[..., None], place, EMPTY)
    items = torch.cat([tables.separator[joint], tables.noun[category, count - 1], place], -1)
    items = torch.where(used[..., None], items, EMPTY).flatten(1)
    head = tables.ask[style, rng.integers(key, 71, (), 0, tables.ask.shape[1] - 1)]
    tail = [tables.opening.expand(batch, -1), items, tables.closing.expand(batch, -1)]
    ids = torch.cat([head, *tail], -1)
    answer = torch.cat([torch.zeros_like(head), torch.ones_like(torch.cat(tail, -1))], -1).bool()
    pack = (ids == EMPTY).long().sort(dim=-1, stable=True).indices[:, :cells]
    ids, answer = ids.gather(1, pack), answer.gather(1, pack)
    answer &= truth.present.any(-1, keepdim=True)
    if ids.shape[1] < cells:
        ids = torch.nn.functional.pad(ids, (0, cells - ids.shape[1]), value=EMPTY)
        answer = torch.nn.functional.pad(answer, (0, cells - answer.shape[1]), value=False)
    return Lines(ids, answer)


def _choose(lines: Lines, template: Tensor, category: Tensor, reply: Tensor, valid: Tensor) -> Lines:
    ids = lines.ids[template, category, reply]
    return Lines(ids, lines.answer[template, category, reply] & valid[..., None])


def questions(layout: Layout, truth: Truth, tables: Tables, caption: int) -> tuple[list[Lines], Tensor]:
    """Questions with answers, a list of (B, questions, cells): short and long yes/no, where, how many, and a caption
    of `caption` cells; and for the yes/no questions whether each is about something present, (B, 8).
    """
    key, device = layout.key, str(layout.key.device)
    partner = partner_table(device)
    draws = SHORT + LONG
    wanted = rng.integers(key, 50, (draws,), 0, 1).bool()
    slots = _pick(key, 51, truth.present, draws)
    there = layout.category.clamp(min=0).gather(1, slots)
    asked = torch.where(wanted, there, _negatives(key, layout, truth.counts, partner, draws))
    reply = (truth.counts.gather(1, asked) > 0).long()
    fine = truth.present.any(-1, keepdim=True).expand(-1, draws)
    parts = []
    for lines, span in ((tables.short, slice(0, SHORT)), (tables.long, slice(SHORT, draws))):
        wording = rng.integers(key, 52 + span.start, (draws,), 0, lines.ids.shape[0] - 1)
        parts.append(_choose(lines, wording[:, span], asked[:, span], reply[:, span], fine[:, span]))
    single = truth.present & (truth.counts.gather(1, layout.category.clamp(min=0)) == 1) & ~layout.ghost
    slot = _pick(key, 54, single, 1)
    about = layout.category.clamp(min=0).gather(1, slot)
    wording = rng.integers(key, 55, (1,), 0, tables.where.ids.shape[0] - 1)
    parts.append(_choose(tables.where, wording, about, truth.place.gather(1, slot), single.any(-1, keepdim=True)))
    most = truth.counts.max(-1, keepdim=True)
    several = (most.values > 1) & (rng.integers(key, 56, (1,), 0, 3) > 0)
    counted = torch.where(several, most.indices, asked[:, :1])
    number = truth.counts.gather(1, counted)
    wording = rng.integers(key, 57, (1,), 0, tables.count.ids.shape[0] - 1)
    parts.append(_choose(tables.count, wording, counted, number.clamp(max=3), number <= 3))
    told = _caption(key, layout, truth, tables, partner, caption)
    return [*parts, Lines(told.ids[:, None], told.answer[:, None])], reply
