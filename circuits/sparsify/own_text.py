"""Text that a model writes itself, for post-training where no other text is there or fits.

Documents are sampled token by token from the dense model's own predictions. Of all models the
dense one then predicts them best on average: what they say cannot be learnt, so a bound on the
cross-entropy is not kept by learning it, and what a sparse model's cross-entropy within a document
lies above the dense one's is, on average, KL(dense || sparse). That holds at temperature 1; what
is left to be learnt is where documents are cut off, and that each has nothing to do with the last.

Hugging Face's `generate` does the sampling. The random numbers of a batch come from the seed and
its number alone, and every finished batch is written: what was stopped goes on to the same text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from jaxtyping import Int
from torch import Tensor

from circuits.files import check_file, write_text
from circuits.gate.gate import is_gated
from circuits.models.adapter import weights_digest
from circuits.models.load import tokenizer_of
from circuits.models.saving import hf_model_of
from circuits.seeds import check_seed, sub_seed
from circuits.sparsify.data import separator_of, tokenizer_digest

if TYPE_CHECKING:
    from circuits.models.backend import Model

PARTIAL = ".partial"
"""Ends the name of a file that is not whole yet."""
_FUTILE = 5


@dataclass(frozen=True)
class TextConfig:
    """What decides the text, but for the model.

    Attributes:
        n_tokens: Tokens to write; the last batch may go beyond.
        openings: What documents begin with, in turn; without any, each begins with the token that
            sets documents apart, and its first word is sampled, too.
        batch_size: Documents that are written at once.
        length: Most tokens of a document, its opening among them.
        temperature: Logits are divided by this; 1 for the model's own predictions.
        seed: Of the sampling.
    """

    n_tokens: int
    openings: tuple[str, ...] = ()
    batch_size: int = 64
    length: int = 256
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_tokens", "batch_size", "length"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be a number > 0")
        check_seed(self.seed)
        if any(not opening.strip() for opening in self.openings):
            raise ValueError("an opening is empty; leave it out")


@dataclass(frozen=True)
class OwnText:
    """What was written: how many documents, and how many tokens they have."""

    path: Path
    n_documents: int
    n_tokens: int


def write_own_text(
    model: Model,
    path: str | Path,
    config: TextConfig,
    *,
    resume: bool = False,
    on_tokens: Callable[[int], None] = lambda _n: None,
) -> OwnText:
    """Writes documents that a model samples into a JSON Lines file, which `--data` reads.

    A line has the document (`text`), its batch and a digest of what it was made by. Until all of it
    is there, the file's name ends in `.partial`.

    Args:
        model: A dense model with a tokenizer, on the device and in the precision to sample in.
        path: The file, whose name must end in `.jsonl`.
        config: How much, and how it is sampled.
        resume: Go on with the partial file of a call that was stopped.
        on_tokens: Called with the number of tokens so far: those that were kept of a call that was
            stopped, then after each batch.

    Raises:
        ValueError: a gated model, one without a Hugging Face counterpart or tokenizer, an opening
            that fills a document, a length beyond the model's context, or a partial file that was
            begun with something else.
        FileExistsError: `path` is there already, or a partial file without `resume`.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    check_paths(path, resume=resume)
    if is_gated(model):
        raise ValueError(
            "the model has a gate; text is sampled from a dense model, such as its own"
        )
    sampler = _Sampler(model, config)
    lines = _whole_batches(partial, sampler.digest) if resume and partial.exists() else []
    n_tokens, n_documents = sum(line["tokens"] for line in lines), len(lines)
    first = lines[-1]["batch"] + 1 if lines else 0
    write_text(partial, "".join(map(_as_line, lines)))
    last = first - 1  # the last batch that anything came of
    if lines:
        on_tokens(n_tokens)
    with partial.open("a", encoding="utf-8") as file:
        for number in itertools.count(first):
            if n_tokens >= config.n_tokens:
                break
            written = sampler.batch(number)
            last = number if written else last
            if number - last == _FUTILE:
                raise ValueError(
                    f"{_FUTILE} batches in a row hold nothing but blanks: the model ends documents "
                    "where they begin; give it openings (--openings)"
                )
            file.writelines(_as_line(line) for line in written)
            file.flush()
            n_tokens += sum(line["tokens"] for line in written)
            n_documents += len(written)
            on_tokens(n_tokens)
    partial.rename(path)
    return OwnText(path, n_documents, n_tokens)


def check_paths(path: Path, *, resume: bool) -> None:
    """Refuses a file that text cannot be written to, before a model is loaded.

    Raises:
        ValueError: its name does not end in `.jsonl`.
        FileExistsError: it is there, or a partial one without `resume`.
        OSError: see `circuits.files.check_file`.
    """
    if path.suffix != ".jsonl":
        raise ValueError(f"{path} must end in .jsonl, which is what is written")
    check_file(path)
    partial = path.with_name(path.name + PARTIAL)
    if path.exists():
        raise FileExistsError(f"{path} is there already; give another name, or remove it")
    if partial.exists() and not resume:
        raise FileExistsError(
            f"{partial} was left by a call that was stopped; go on with it (--resume), or remove it"
        )


class _Sampler:
    """A model as Hugging Face has it, ready to write batches of documents."""

    def __init__(self, model: Model, config: TextConfig) -> None:
        self._tokenizer = tokenizer_of(model)
        self._config = config
        self._device = model.W_E.device
        self._start = separator_of(self._tokenizer)
        self._end = self._tokenizer.eos_token_id
        if config.length >= model.cfg.n_ctx:
            raise ValueError(
                f"length is {config.length}; the model's n_ctx is {model.cfg.n_ctx}, and one token "
                "goes to the beginning of a document"
            )
        rows = [
            self._tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in config.openings or ("",)
        ]
        self._openings: list[list[int]] = [[self._start, *row] for row in rows]
        for text, row in zip(config.openings, self._openings, strict=False):
            if len(row) > config.length:
                raise ValueError(
                    f"the opening {text[:40]!r} has {len(row) - 1} tokens and leaves nothing to "
                    f"write: length is {config.length}"
                )
        hf_model: Any = hf_model_of(model)
        self.digest = _digest(config, weights_digest(hf_model), self._tokenizer, model.W_E.dtype)
        self._hf_model: Any = hf_model.to(self._device)

    @torch.no_grad()
    def batch(self, number: int) -> list[dict[str, Any]]:
        """Returns the lines of a batch, without documents of nothing but blanks."""
        config = self._config
        numbers = range(number * config.batch_size, (number + 1) * config.batch_size)
        openings = [self._openings[number % len(self._openings)] for number in numbers]
        ids, mask = _padded_left(openings, self._start)
        seed = sub_seed((config.seed << 24) + number, f"{config.seed}/text/{number}")
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seed)
            found = self._hf_model.generate(
                ids.to(self._device),
                attention_mask=mask.to(self._device),
                do_sample=True,
                temperature=config.temperature,
                # Whatever the model's own settings are: nothing is cut off the distribution.
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                max_new_tokens=config.length + 1 - min(map(len, openings)),
                eos_token_id=self._end,
                pad_token_id=self._start if self._end is None else self._end,
            )
        lines = []
        for opening, row in zip(openings, found[:, ids.shape[1] :].tolist(), strict=True):
            new = list(itertools.takewhile(lambda token: token != self._end, row))
            tokens = [*opening[1:], *new][: config.length]
            text = str(
                self._tokenizer.decode(
                    tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )
            if text.strip():
                lines.append(
                    {"text": text, "tokens": len(tokens), "batch": number, "made_by": self.digest}
                )
        return lines


def _padded_left(
    rows: Sequence[Sequence[int]], pad: int
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Rows of one width, what is to be written after them in one column; and where they are."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width) >= width - lengths[:, None]).long()


def _digest(config: TextConfig, weights: str, tokenizer: Any, dtype: torch.dtype) -> str:
    """A short digest of what decides the text; how much of it there is to be is not part of it."""
    decides = asdict(config) | {
        "n_tokens": None,
        "weights": weights,
        "tokenizer": tokenizer_digest(tokenizer),
        "dtype": str(dtype),
        "versions": [torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _as_line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _whole_batches(partial: Path, digest: str) -> list[dict[str, Any]]:
    """The lines of a partial file without its last batch, which may not be whole."""
    found = list(_readable(partial))
    if any(line.get("made_by") != digest for line in found):
        raise ValueError(
            f"{partial} was begun with another model, other settings or other versions; remove it, "
            "or give the ones that it was begun with"
        )
    return [line for line in found if line["batch"] < found[-1]["batch"]]


def _readable(partial: Path) -> Iterator[dict[str, Any]]:
    """The lines up to the first that is broken off."""
    with partial.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                return
            if not isinstance(line, dict) or "batch" not in line or not text.endswith("\n"):
                return
            yield line
