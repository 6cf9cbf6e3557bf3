"""A synthetic stream of behaviours: the text that the embedded pair of models is trained on.

Each document is a handful of sentences, each drawn from one behaviour in one of many wordings:
indirect objects, years that must grow, lists to be repeated, two-digit sums, gendered pronouns,
agreement over a distance, who owns what, and plain filler. The behaviours share words, stand at
any position and distract from each other, so a model must look for what matters among what does
not. Everything is drawn from a seed; `documents(seed)` is the same stream on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuits.tasks import greater_than, ioi

SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|unk|>")

IOI_WORDINGS = (
    *(f"{template} {{receiver}}." for template in ioi.TEMPLATES),
    "When {first} and {second} left the {place} {time}, {giver} gave the {thing} to {receiver}.",
    "{time}, {first} and {second} found a {thing} at the {place} and {giver} gave it to "
    "{receiver}.",
    "{first} and {second} stayed in the {place} for a long time. Then {giver} handed a {adjective} "
    "{thing} to {receiver}.",
    "After a talk about the {thing}, {first} and {second} went to the {place}. There {giver} "
    "offered it to {receiver}.",
    "Because {first} and {second} liked the {adjective} {place}, {giver} passed a {thing} to "
    "{receiver}.",
    "While the {animal} slept near the {place}, {first} met {second} and {giver} sent a {thing} "
    "to {receiver}.",
)
YEAR_WORDINGS = (
    f"{greater_than.TEMPLATE}{{end}}.",
    "The {event} began in {century}{year} and ended in {century}{end}.",
    "From {century}{year} to {century}{end} the {adjective} {event} went on.",
    "A {event} in the {place} lasted from {century}{year} until {century}{end}.",
    "The {event} of the year {century}{year} was over {time} in the year {century}{end}.",
)
PRONOUN_WORDINGS = (
    "{name} lost the {thing} because {he} was in the {place}.",
    "{name} said that {he} liked the {adjective} {animal}, so {he} gave {him} a {thing}.",
    "When {name} came to the {place}, {he} found {his} {thing} there.",
    "{name} looked at the {animal} near the {place} and then {he} went to {his} {adjective} house.",
)
FILLER_WORDINGS = (
    "The {adjective} {animal} near the {place} slept {time}.",
    "{time}, a {adjective} {thing} was found in the {place}.",
    "There was a {thing} and a {adjective} {animal} in the {place}.",
    "{name} was at the {place} {time}.",
    "In the year {century}{year} a {adjective} {place} was built.",
    "{name} and {other} talked about the {event}.",
)
ADJECTIVES = tuple(
    "old small large quiet red green blue dark bright long cold warm strange famous".split()
)
ANIMALS = tuple("dog cat horse bird fox sheep mouse bear lion duck".split())
TIMES = ("in the morning", "at night", "on Monday", "on Friday", "last week", "after dinner")
LIST_WORDS = (
    *ADJECTIVES,
    *ANIMALS,
    *ioi.PLACES,
    *ioi.THINGS,
    *greater_than.EVENTS,
    *tuple("apple bread salt paper stone glass silver gold iron wood water fire".split()),
)
# A head copies through d_head dimensions: a small model learns fewer names well.
NAMES = (*ioi.FEMALE_NAMES[:14], *ioi.MALE_NAMES[:14])
CORPUS_CENTURIES = tuple(range(11, 21))


def documents(seed: int, behaviours: Sequence[str] = ()) -> Iterator[str]:
    """Yields documents of three to nine sentences without end, the same for the same seed.

    Args:
        seed: Decides every word.
        behaviours: Names in `BEHAVIOURS` to draw from; all of them if left out.

    Raises:
        ValueError: an unknown behaviour.
    """
    unknown = set(behaviours) - set(BEHAVIOURS)
    if unknown:
        raise ValueError(f"unknown behaviours {sorted(unknown)}; there are {', '.join(BEHAVIOURS)}")
    rng = random.Random(f"corpus {seed}")
    chosen_behaviours = [BEHAVIOURS[name] for name in behaviours or BEHAVIOURS]
    writers, weights = zip(*chosen_behaviours, strict=True)
    while True:
        chosen = rng.choices(writers, weights, k=rng.randint(3, 9))
        yield " ".join(write(rng) for write in chosen)


def words() -> list[str]:
    """Returns every word, number and mark that the corpus can hold, in sorted order."""
    found = (
        set(".,:+=")
        | {"is", "are"}
        | {f"{thing}s" for thing in ioi.THINGS}
        | set(greater_than.YEARS)
        | set("0123456789")
    )
    lexicons = (NAMES, ioi.PLACES, ioi.THINGS, greater_than.EVENTS, ADJECTIVES, ANIMALS)
    for lexicon in (*lexicons, LIST_WORDS):
        found.update(lexicon)
    found.update(word for time in TIMES for word in (time, _capital(time)) for word in word.split())
    wordings = (IOI_WORDINGS, YEAR_WORDINGS, PRONOUN_WORDINGS, FILLER_WORDINGS)
    for wording in (text for group in (*wordings, _FIXED_TEXTS) for text in group):
        bare = "".join(" " if mark in ".,:+=" else mark for mark in wording)
        found.update(word for word in bare.split() if "{" not in word)
    for pronouns in _PRONOUNS.values():
        found.update(pronouns.values())
    return sorted(found)


def corpus_tokenizer(*, context: int) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of the corpus: a token is a word, two digits, one digit or a mark."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL_TOKENS, *words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    pattern = Regex(r"\d{2}|\d|[A-Za-z]+|[^\sA-Za-z\d]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|unk|>",
        pad_token="<|pad|>",
        model_max_length=context,
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _filled(rng: random.Random, wording: str, **given: str) -> str:
    """The wording with `given` filled in and everything else drawn at random."""
    name, other = rng.sample(NAMES, 2)
    blanks = {
        "name": name,
        "other": other,
        "place": rng.choice(ioi.PLACES),
        "thing": rng.choice(ioi.THINGS),
        "event": rng.choice(greater_than.EVENTS),
        "adjective": rng.choice(ADJECTIVES),
        "animal": rng.choice(ANIMALS),
        "time": rng.choice(TIMES),
        "century": str(rng.choice(CORPUS_CENTURIES)),
        "year": rng.choice(greater_than.YEARS),
    }
    return _capital(wording.format(**(blanks | given)))


def _indirect_object(rng: random.Random) -> str:
    first, second = rng.sample(NAMES, 2)
    giver, receiver = rng.sample((first, second), 2)
    return _filled(
        rng,
        rng.choice(IOI_WORDINGS),
        first=first,
        second=second,
        giver=giver,
        receiver=receiver,
    )


def _growing_years(rng: random.Random) -> str:
    start = rng.randint(1, 98)
    return _filled(
        rng,
        rng.choice(YEAR_WORDINGS),
        year=greater_than.YEARS[start],
        end=greater_than.YEARS[rng.randint(start + 1, 99)],
    )


def _repeated_list(rng: random.Random) -> str:
    items = " ".join(rng.sample(LIST_WORDS, rng.randint(3, 7)))
    return rng.choice(_FIXED_TEXTS[:2]).format(items=items)


def _sum(rng: random.Random) -> str:
    """Digits stand apart, so that each is a token: 3 4 + 2 9 = 0 6 3."""
    left, right = rng.randint(0, 99), rng.randint(0, 99)
    spaced = (" ".join(text) for text in (f"{left:02d}", f"{right:02d}", f"{left + right:03d}"))
    return "{} + {} = {}.".format(*spaced)


_PRONOUNS = {
    "female": {"he": "she", "him": "her", "his": "her"},
    "male": {"he": "he", "him": "him", "his": "his"},
}


def _pronoun(rng: random.Random) -> str:
    name = rng.choice(NAMES)
    gender = "female" if name in ioi.FEMALE_NAMES else "male"
    return _filled(rng, rng.choice(PRONOUN_WORDINGS), name=name, **_PRONOUNS[gender])


def _agreement(rng: random.Random) -> str:
    """The verb agrees with the first noun, not with the one before it."""
    subject, distractor = rng.sample(ioi.THINGS, 2)
    plural = rng.random() < 0.5
    return _filled(
        rng,
        _FIXED_TEXTS[2],
        subject=f"{subject}s" if plural else subject,
        distractor=distractor if plural else f"{distractor}s",
        verb="are" if plural else "is",
    )


def _owners(rng: random.Random) -> str:
    """Two or three owners, then the question whose one of the things is."""
    count = rng.randint(2, 3)
    owners = list(zip(rng.sample(NAMES, count), rng.sample(ioi.THINGS, count), strict=True))
    told = " ".join(_FIXED_TEXTS[3].format(name=name, thing=thing) for name, thing in owners)
    name, thing = rng.choice(owners)
    return f"{told} {_FIXED_TEXTS[4].format(name=name, thing=thing)}"


def _filler(rng: random.Random) -> str:
    return _filled(rng, rng.choice(FILLER_WORDINGS))


_FIXED_TEXTS = (
    "List: {items}. Again: {items}.",
    "The words {items} and once more the words {items}.",
    "The {subject} near the {distractor} {verb} {adjective}.",
    "{name} has the {thing}.",
    "The {thing} belongs to {name}.",
)

BEHAVIOURS: dict[str, tuple[Callable[[random.Random], str], float]] = {
    "indirect_object": (_indirect_object, 0.28),
    "growing_years": (_growing_years, 0.20),
    "repeated_list": (_repeated_list, 0.10),
    "sum": (_sum, 0.12),
    "pronoun": (_pronoun, 0.10),
    "agreement": (_agreement, 0.05),
    "owners": (_owners, 0.07),
    "filler": (_filler, 0.08),
}
"""Each behaviour's writer and its share of the sentences."""
