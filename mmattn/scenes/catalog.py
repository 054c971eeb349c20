"""What the world contains: COCO categories, which of them go together, and where a picture may place them."""

from dataclasses import dataclass

__all__ = [
    "CATEGORIES", "PAIRS", "PLACES", "THEMES", "Category", "article", "names", "noun_phrase", "partners", "units",
]  # fmt: skip


@dataclass(frozen=True)
class Category:
    """One COCO category: its original id, name and supercategory, and the emoji that draws it."""

    id: int
    name: str
    supercategory: str
    emoji: str
    plural: str


def _parse(table: str) -> tuple[Category, ...]:
    rows = []
    for line in table.strip().splitlines():
        number, name, supercategory, emoji, *irregular = (cell.strip() for cell in line.split("|"))
        plural = irregular[0] if irregular else name + "s"
        rows.append(Category(int(number), name, supercategory, chr(int(emoji, 16)), plural))
    return tuple(rows)


CATEGORIES: tuple[Category, ...] = _parse("""
1|person|person|1F9CD|people
2|bicycle|vehicle|1F6B2
3|car|vehicle|1F697
4|motorcycle|vehicle|1F3CD
5|airplane|vehicle|2708
6|bus|vehicle|1F68C|buses
7|train|vehicle|1F686
8|truck|vehicle|1F69A
9|boat|vehicle|26F5
10|traffic light|outdoor|1F6A6
13|stop sign|outdoor|1F6D1
16|bird|animal|1F426
17|cat|animal|1F408
18|dog|animal|1F415
19|horse|animal|1F40E
20|sheep|animal|1F411|sheep
21|cow|animal|1F404
22|elephant|animal|1F418
23|bear|animal|1F43B
24|zebra|animal|1F993
25|giraffe|animal|1F992
27|backpack|accessory|1F392
28|umbrella|accessory|2602
31|handbag|accessory|1F45C
32|tie|accessory|1F454
33|suitcase|accessory|1F9F3
34|frisbee|sports|1F94F
35|skis|sports|1F3BF|skis
37|sports ball|sports|26BD
38|kite|sports|1FA81
41|skateboard|sports|1F6F9
43|tennis racket|sports|1F3BE
44|bottle|kitchen|1F37E
46|wine glass|kitchen|1F377|wine glasses
47|cup|kitchen|2615
48|fork|kitchen|1F374
49|knife|kitchen|1F52A|knives
50|spoon|kitchen|1F944
51|bowl|kitchen|1F35A
52|banana|food|1F34C
53|apple|food|1F34E
54|sandwich|food|1F96A|sandwiches
55|orange|food|1F34A
56|broccoli|food|1F966|broccoli
57|carrot|food|1F955
58|hot dog|food|1F32D
59|pizza|food|1F355
60|donut|food|1F369
61|cake|food|1F382
62|chair|furniture|1FA91
63|couch|furniture|1F6CB|couches
64|potted plant|furniture|1FAB4
65|bed|furniture|1F6CF
70|toilet|furniture|1F6BD
72|tv|electronic|1F4FA
73|laptop|electronic|1F4BB
74|mouse|electronic|1F5B1|mice
76|keyboard|electronic|2328
77|cell phone|electronic|1F4F1
84|book|indoor|1F4D5
85|clock|indoor|1F550
86|vase|indoor|1F3FA
87|scissors|indoor|2702|scissors
88|teddy bear|indoor|1F9F8
90|toothbrush|indoor|1FAA5|toothbrushes
""")

# Two categories that nearly always come together in training pictures.
PAIRS: tuple[tuple[str, str], ...] = (
    ("car", "traffic light"), ("knife", "fork"), ("cow", "sheep"), ("keyboard", "mouse"),
    ("bus", "stop sign"), ("bowl", "spoon"), ("horse", "bird"), ("laptop", "cell phone"),
    ("bicycle", "backpack"), ("bottle", "wine glass"), ("elephant", "giraffe"), ("couch", "tv"),
    ("motorcycle", "truck"), ("cup", "donut"), ("zebra", "bear"), ("chair", "potted plant"),
    ("airplane", "suitcase"), ("banana", "apple"), ("frisbee", "dog"), ("bed", "teddy bear"),
    ("person", "handbag"), ("broccoli", "carrot"), ("kite", "boat"), ("toilet", "toothbrush"),
    ("pizza", "hot dog"), ("tennis racket", "sports ball"),
)  # fmt: skip

# Each theme lists units by one member: the pair it belongs to, or the category alone.
THEMES: dict[str, tuple[str, ...]] = {
    "street": ("car", "bus", "bicycle", "motorcycle", "person", "train", "umbrella", "skateboard"),
    "travel": ("airplane", "person", "kite", "train", "umbrella", "clock"),
    "farm": ("cow", "horse", "frisbee", "motorcycle", "cat"),
    "zoo": ("elephant", "zebra", "horse", "person", "umbrella"),
    "dinner": ("knife", "bowl", "bottle", "pizza", "broccoli", "cake", "sandwich"),
    "breakfast": ("cup", "banana", "bowl", "orange", "sandwich", "cake"),
    "office": ("keyboard", "laptop", "cup", "book", "clock", "scissors", "tie"),
    "home": ("couch", "chair", "bed", "vase", "clock", "book", "cat"),
    "bathroom": ("toilet", "chair", "vase", "scissors", "tie"),
    "sport": ("tennis racket", "frisbee", "kite", "bicycle", "skis", "skateboard"),
}

_BARE = ("skis", "scissors", "broccoli")

# Names of the nine thirds-by-thirds regions, row by row.
PLACES: tuple[str, ...] = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the middle", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip


def names() -> list[str]:
    """Category names in the order of their index inside the world (0 .. len-1)."""
    return [category.name for category in CATEGORIES]


def noun_phrase(name: str) -> str:
    """As :func:`article`, but ``"skis"``, ``"scissors"`` and ``"broccoli"`` stay without one."""
    return name if name in _BARE else article(name)


def article(name: str) -> str:
    """``name`` with its indefinite article: ``"an apple"``, ``"a dog"``."""
    return ("an " if name[0] in "aeiou" else "a ") + name


def partners() -> dict[str, str]:
    """Each paired category's partner, both ways."""
    return dict(PAIRS) | {second: first for first, second in PAIRS}


def units() -> list[tuple[str, ...]]:
    """The things a picture is composed of: all pairs, then the categories that have no partner."""
    paired = partners()
    return [*PAIRS, *((name,) for name in names() if name not in paired)]
