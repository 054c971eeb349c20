"""What the three models share before any weights: how a conversation is written down, and the tokenizer."""

from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from training.words import corpus

__all__ = ["GRID", "SIDE", "Style", "make_tokenizer"]

# All models see pictures of SIDE x SIDE pixels; training labels them in GRID x GRID cells.
SIDE, GRID, VOCABULARY = 168, 12, 1200


@dataclass(frozen=True)
class Style:
    """How one model writes a picture, a question and its answer.

    ``chat``: the chat template. ``frame``: what it makes of one picture and ``{question}``. ``plain``: the words of
    the frame and of an answer, ``{question}`` and ``{answer}``, for the tokenizer to learn. ``lead``: what stands
    before an answer's first word. ``image``: the placeholder of a picture. ``in_text``: the placeholder stands in
    the frame (elsewhere the processor puts it before everything).
    """

    chat: str
    frame: str
    plain: str
    lead: str
    pad: str
    bos: str | None
    eos: str
    image: str
    others: tuple[str, ...] = ()
    in_text: bool = True

    def prompt(self, question: str) -> str:
        """What the chat template makes of one picture and one question."""
        return self.frame.replace("{question}", question)

    def answer(self, text: str) -> str:
        """An answer as it follows the prompt."""
        return self.lead + text.strip()

    def specials(self) -> list[str]:
        """All special tokens, in the order of their ids."""
        return [token for token in (self.pad, self.bos, self.eos, self.image, *self.others) if token]


def make_tokenizer(style: Style, padding: str = "left") -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on all sentences of the world."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=style.specials(),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(style.plain), trainer)
    if style.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{style.bos} $A", pair=f"{style.bos} $A {style.bos} $B",
            special_tokens=[(style.bos, tokenizer.token_to_id(style.bos))],
        )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=style.bos, eos_token=style.eos, pad_token=style.pad,
        padding_side=padding, clean_up_tokenization_spaces=False, model_max_length=1024,
        # InstructBLIP's processor adds the placeholder itself and trips over a tokenizer that names it.
        extra_special_tokens={"image_token": style.image} if style.in_text else {},
    )  # fmt: skip
