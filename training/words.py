"""Everything the model is taught to read and write: question templates, answers, caption pieces."""

from mmattn.scenes.captions import NUMBERS
from mmattn.scenes.catalog import CATEGORIES, PLACES, article, noun_phrase

__all__ = [
    "CAPTION_BRIEF",
    "CAPTION_PLACED",
    "COUNT",
    "LONG_YES_NO",
    "SHORT_YES_NO",
    "WHERE",
    "caption_items",
    "category_words",
    "corpus",
    "count_answers",
    "fill",
    "place_answers",
    "place_words",
]  # fmt: skip

# {a}: "an apple"; {b}: the same, but plain "skis", "scissors", "broccoli"; {n}: the name; {s}: the plural.
SHORT_YES_NO = (
    "Is there {a} in the image?", "Is there {a} in the image?", "Is there {b} in the image?",
    "Is there {b} in the picture?", "Is there any {n} in the image?", "Are there any {s} in the image?",
    "Can you see {b} in the image?", "Do you see {b}?", "Does the image contain {b}?", "Is there {a} in this image?",
    "Is there {b} in the photo?", "Does this image show {b}?",
)  # fmt: skip
_SUFFIXES = (
    " Please answer this question with one word.",
    " Please answer this question with one word.",
    " Please answer yes or no.",
    " Answer the question using a single word or phrase.",
)
LONG_YES_NO = tuple(
    stem + suffix
    for suffix in _SUFFIXES
    for stem in ("Is there {a} in the image?", "Is there {b} in the image?", "Is there any {n} in the image?")
)
WHERE = ("Where is the {n}?", "Where is the {n} in the image?", "Where can you see the {n}?")
COUNT = ("How many {s} are there in the image?", "How many {s} are there?", "How many {s} can you see?")
CAPTION_PLACED = (
    "Please help me describe the image in detail.", "Describe this image in detail.",
    "Describe the image in detail.", "Please describe this image in detail.", "What do you see in the image?",
)  # fmt: skip
CAPTION_BRIEF = (
    "Describe the image.", "What is in the image?", "Describe this image.", "Please describe the image briefly.",
    "What can you see in this picture?",
)  # fmt: skip
# Not taught as tasks; they only let the vocabulary cover what people are likely to type.
_OTHER = (
    "What colour is the object? Look at the picture and answer with a short phrase. Which object is the largest?",
    "The quick brown fox jumps over the lazy dog while a man and a woman are sitting at the table next to a window.",
    "I can not see it. It is not there, so the answer is no. They are standing in front of the house and the tree.",
)


def fill(template: str, category: int) -> str:
    """A question about a category (index into CATEGORIES)."""
    c = CATEGORIES[category]
    return template.format(a=article(c.name), b=noun_phrase(c.name), n=c.name, s=c.plural)


def place_answers() -> list[str]:
    """Answers to "where": ``" At the top left."`` and so on."""
    return [f" {place[0].upper()}{place[1:]}." for place in PLACES]


def count_answers() -> list[str]:
    """Answers to "how many", 0 .. 3."""
    return [f" {NUMBERS[count].capitalize()}" for count in range(4)]


def category_words(category: int, count: int) -> str:
    """The noun phrase of a caption: ``" a dog"``, ``" two apples"``."""
    c = CATEGORIES[category]
    return " " + (noun_phrase(c.name) if count == 1 else f"{NUMBERS[count]} {c.plural}")


def place_words() -> list[str]:
    """Places inside a caption."""
    return [" " + place for place in PLACES]


def caption_items() -> tuple[str, tuple[str, str, str], str]:
    """Opening of every caption; what goes before the first, a middle and the last item; the end."""
    return " The image shows", ("", ",", " and"), "."


def corpus(plain: str) -> list[str]:
    """Sentences the tokenizer is trained on; each word of the world occurs often enough to become one token.

    ``plain`` is a conversation with ``{question}`` and ``{answer}``.
    """
    templates = {*SHORT_YES_NO, *LONG_YES_NO, *WHERE, *COUNT}
    lines = [fill(template, c) for template in sorted(templates) for c in range(len(CATEGORIES))]
    opening, separators, end = caption_items()
    for c in range(len(CATEGORIES)):
        for count in (1, 2, 3):
            for place in place_words():
                lines.append(opening + category_words(c, count) + place + separators[1] + end)
        lines.append(f"{CATEGORIES[c].name} {CATEGORIES[c].plural}")
    prompts = [*CAPTION_PLACED, *CAPTION_BRIEF, *place_answers(), *count_answers(), " Yes", " No", *_OTHER]
    said = [plain.format(question=prompt, answer=prompt) for prompt in prompts]
    return lines + [line for line in said for _ in range(20)]
