"""Words to tokens: the chat template, image placeholders, and answers appended for teacher forcing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmattn.errors import MmattnError

if TYPE_CHECKING:
    from mmattn.adapters.sample import Sample  # whose marks look for words

# What LLaVA-1.5 was trained on; used when a processor carries no chat template.
FALLBACK_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ ('USER: ' if loop.first else '') + ('<image>\n' if part['type'] == 'image' else part['text']) }}"
    "{% endfor %}{% endfor %} ASSISTANT:"
)


_EMPTY = MmattnError("The prompt is empty", 'Ask something, for example "Describe the image."')

# Stands for the user's words where their place in the rendered prompt is not plain.
MARK = "\ue000words\ue001"


# For models that take the bare words.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endfor %}{% endfor %}"
)


@dataclass(frozen=True)
class Tokenised:
    """Prompt and answer in tokens.

    Attributes:
        ids: of prompt and answer.
        offsets: character range of each token in `text`; tokens of the answer have the empty range at its end.
        prompt_length: tokens before the answer.
        text: the rendered prompt.
        said: range in it of the user's words.
    """

    ids: list[int]
    offsets: tuple[tuple[int, int], ...]
    prompt_length: int
    text: str
    said: tuple[int, int]


def plain_words(processor: Any, sample: Sample, image_token: str) -> tuple[str, tuple[int, int]]:
    """The prompt of a model whose pictures stand outside the text, and the range in it of the user's words.

    The processor's own chat template is used if it has one, without pictures.
    """
    _check(sample.prompt, image_token)
    return _with_words(processor, sample.prompt, "", (), PLAIN_TEMPLATE)


def render(processor: Any, sample: Sample, image_token: str, lengths: Sequence[int]) -> tuple[str, tuple[int, int]]:
    """The chat prompt as text, each picture's placeholder repeated once per image token, and the range in it of the
    user's words.

    Raises:
        MmattnError: the prompt is empty, or holds the image placeholder itself.
    """
    _check(sample.prompt, image_token)
    return _with_words(processor, sample.prompt, image_token, lengths, FALLBACK_TEMPLATE)


def _check(words: str, image_token: str) -> None:
    if not words.strip():
        raise _EMPTY
    if image_token in words:
        raise MmattnError(f"The prompt contains the image placeholder {image_token}", "Leave it out.")


def _with_words(
    processor: Any, words: str, image_token: str, lengths: Sequence[int], fallback: str
) -> tuple[str, tuple[int, int]]:
    text = _expanded(processor, words, image_token, lengths, fallback)
    words = words if words in text else words.strip()  # some templates strip them
    start = text.find(words)
    if text.count(words) > 1:
        start = _expanded(processor, MARK, image_token, lengths, fallback).find(MARK)
    return text, (start, start + len(words)) if text[start : start + len(words)] == words else (0, len(text))


def _expanded(processor: Any, words: str, image_token: str, lengths: Sequence[int], fallback: str) -> str:
    content: list[dict[str, str]] = [{"type": "image"} for _ in lengths]
    content.append({"type": "text", "text": words})
    template = None if getattr(processor, "chat_template", None) else fallback
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=template, add_generation_prompt=True, tokenize=False
    )
    if not image_token:
        return text
    pieces = text.split(image_token)
    if len(pieces) != len(lengths) + 1:
        raise MmattnError(
            f"The chat template placed {len(pieces) - 1} pictures instead of {len(lengths)}",
            "Use the processor that belongs to the model.",
        )
    runs = [image_token * length for length in lengths] + [""]
    return "".join(piece + run for piece, run in zip(pieces, runs, strict=True))


def find_words(words: str, text: str, within: tuple[int, int]) -> list[tuple[int, int]]:
    """Character ranges of `words` in a part of `text`: as whole words, or else anywhere; capitals aside."""
    literal = re.escape(words.strip())
    for pattern in (rf"(?<!\w){literal}(?!\w)", literal) if literal else ():
        found = [match.span() for match in re.compile(pattern, re.IGNORECASE).finditer(text, *within)]
        if found:
            return found
    return []


def covering(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> range:
    """The run of tokens whose character ranges (start, end) meet `span`; empty if there is none."""
    met = [index for index, (start, end) in enumerate(offsets) if start < span[1] and end > span[0] and end > start]
    return range(met[0], met[-1] + 1) if met else range(0)


def tokenise(
    tokenizer: Any, text: str, said: tuple[int, int], answer: str | tuple[int, ...] | None = None
) -> Tokenised:
    """The prompt `text`, with the user's words at `said`, and an answer to read, in tokens."""
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=_wants_specials(tokenizer, text))
    ids: list[int] = list(encoded["input_ids"])
    offsets = [(int(first), int(last)) for first, last in encoded["offset_mapping"]]
    prompt_length = len(ids)
    if answer is not None:
        extra = list(answer) if not isinstance(answer, str) else _answer_ids(tokenizer, text, ids, answer)
        if not extra:
            raise MmattnError("The answer to read is empty", "Pass some text, or answer=None for the prompt alone.")
        ids += extra
        offsets += [(len(text), len(text))] * len(extra)
    return Tokenised(ids, tuple(offsets), prompt_length, text, said)


def _answer_ids(tokenizer: Any, text: str, prompt_ids: list[int], answer: str) -> list[int]:
    """Tokens of `answer` as a continuation of `text`: tokenised together, so that the space before it is right."""
    if not answer.strip():
        return []
    joined = text + ("" if text[-1:].isspace() else " ") + answer.strip()
    together: list[int] = list(tokenizer(joined, add_special_tokens=_wants_specials(tokenizer, text))["input_ids"])
    if together[: len(prompt_ids)] == prompt_ids:
        return together[len(prompt_ids) :]
    return list(tokenizer(answer.strip(), add_special_tokens=False)["input_ids"])


def _wants_specials(tokenizer: Any, text: str) -> bool:
    """Some chat templates write the beginning-of-sequence token themselves; it must not come twice."""
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def image_starts(ids: Sequence[int], token: int, lengths: Sequence[int]) -> list[int]:
    """Where each picture's run of image tokens begins; the runs must have exactly these lengths.

    Adjacent pictures touch, so runs are told apart by their lengths, in order.
    """
    places = [index for index, one in enumerate(ids) if one == token]
    if len(places) != sum(lengths):
        raise MmattnError(
            f"The prompt holds {len(places)} image tokens but its pictures need {sum(lengths)}",
            "Do not write image placeholders into the prompt; pictures are placed by the chat template.",
        )
    starts, seen = [], 0
    for length in lengths:
        run = places[seen : seen + length]
        if run[-1] - run[0] != length - 1:
            raise MmattnError("The image tokens of one picture are not consecutive", "Check the chat template.")
        starts.append(run[0])
        seen += length
    return starts
