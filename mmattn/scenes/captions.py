"""Truthful sentences about a picture, from the list of what is in it."""

from dataclasses import dataclass

from mmattn.scenes.catalog import PLACES, noun_phrase

__all__ = ["NUMBERS", "Mention", "join", "listing", "place_of", "references"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


@dataclass(frozen=True)
class Mention:
    """A category in a picture: how many instances, and where the first one is (index into PLACES)."""

    name: str
    plural: str
    count: int
    place: int


def place_of(x: float, y: float, side: int) -> int:
    """Index into PLACES of a point in a square picture with this side, in pixels."""
    return min(int(3 * y / side), 2) * 3 + min(int(3 * x / side), 2)


def phrase(mention: Mention, placed: bool) -> str:
    """``"a dog at the top"``, or ``"two apples"`` (several instances have no single place)."""
    if mention.count > 1:
        return f"{NUMBERS[mention.count]} {mention.plural}"
    return noun_phrase(mention.name) + (" " + PLACES[mention.place] if placed else "")


def join(parts: list[str]) -> str:
    """``"a, b and c"``."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def listing(mentions: list[Mention], placed: bool) -> str:
    """All mentions as one enumeration."""
    return join([phrase(mention, placed) for mention in mentions])


def references(mentions: list[Mention]) -> list[str]:
    """Five reference captions; the last two may leave things out, as people do."""
    backwards = mentions[::-1]
    sentences = [
        f"The image shows {listing(mentions, True)}.",
        f"A picture of {listing(mentions, False)}.",
        f"We can see {listing(backwards, False)}.",
        f"There is {listing(mentions[:2], True)}.",
        f"A scene with {listing(backwards[:3], False)}.",
    ]
    if mentions[0].count > 1:
        sentences[3] = sentences[3].replace("There is", "There are", 1)
    return sentences
