"""Small tokenizers of the kinds that real language models have, trained on the tasks' own words.

What differs between the kinds is how text is cut before words are looked up, whether there is a
token that begins texts, and whether the first word of a text gets a space.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from circuits.tasks import brackets, greater_than, induction, ioi

BEGIN = "<s>"
# As Llama 3 and Qwen 2 cut text: a sign goes with the word behind it, numbers are cut in threes or
# in ones (the tokenizer.json of either).
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ("gpt2", "pythia", "smollm2", "qwen", "llama3", "llama2")
LONE_BRACKET = "text"  # the name that no tokenizer here joins with "[", though some do with "("


def _words() -> Iterator[tuple[str, int]]:
    """Words as they stand in a text, each with how often it is met."""
    templates = (*ioi.TEMPLATES, *induction.TEMPLATES, greater_than.TEMPLATE, *brackets.TEMPLATES)
    plain = "near lost because came said that is are she he When Then The".split()
    nouns = [*ioi.PLACES, *ioi.THINGS, *(f"{thing}s" for thing in ioi.THINGS)]
    within = [*ioi.NAMES, *nouns, *induction.WORDS, *greater_than.EVENTS, *plain, *brackets.OUTER]
    for word in dict.fromkeys(within):
        yield f" {word}", 4
    for word in (*ioi.NAMES, *brackets.INNER):
        yield word, 2
    for template in templates:
        for word in template.replace("{", " ").replace("}", " ").split():
            yield f" {word}", 1


def _code() -> Iterator[tuple[str, int]]:
    """Brackets that are joined with the name behind them, where text is cut that way."""
    for name in brackets.INNER:
        yield f"({name}", 3
        if name != LONE_BRACKET:
            yield f"[{name}", 3


def _numbers() -> Iterator[tuple[str, int]]:
    for century in greater_than.CENTURIES:
        yield f" {century}", 30  # more often than any other pair of digits, so joined first
    for year in greater_than.YEARS:
        yield year, 2
    for number in range(100, 200):
        yield f"{number}", 1


@cache
def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that is like the one that its kind is named after."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>" if kind == "llama2" else None))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    joined = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<unk>"]
    samples = [*_words()]
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        samples += [(digit, 1) for digit in greater_than.DIGITS]
    elif kind == "smollm2":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif kind in ("qwen", "llama3"):
        cut = _CUT.format(digits="" if kind == "qwen" else "{1,3}")
        split = pre_tokenizers.Split(Regex(cut), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, joined])
        samples += _code()
    else:
        tokenizer.pre_tokenizer = byte_level
    if kind != "llama2":
        samples += _numbers()
        tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=20_000,
        show_progress=False,
        special_tokens=[*special, BEGIN],
        initial_alphabet=["▁", *".,:=()[]{}\n"]
        if kind == "llama2"
        else pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((text for text, n in samples for _ in range(n)), trainer)
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    begin = {} if kind == "qwen" else {"bos_token": BEGIN}
    unknown = {"unk_token": "<unk>"} if kind == "llama2" else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=BEGIN, **begin, **unknown)
