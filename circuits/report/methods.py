"""What a paper says about a comparison: the methods in words, its references, its tables.

Everything is read from the results: an option that was not at its default is named, and a number
that is not known is not mentioned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from circuits.choices import ABLATIONS, GATES, SELECTIONS
from circuits.figures import UNITS
from circuits.numbers import percent, sized
from circuits.results.comparison import Comparison
from circuits.results.discovery import DiscoverConfig

_METHODS = {
    "attribution_patching": ("attribution patching", ["syed2023"]),
    "integrated_gradients": (
        "attribution patching with integrated gradients over a path of the input",
        ["hanna2024"],
    ),
    "integrated_activations": (
        "attribution patching with integrated gradients over a path of each component's output",
        ["hanna2024"],
    ),
    "gradient_average": (
        "attribution patching with the mean of the gradients at the clean and the ablated input",
        ["syed2023"],
    ),
    "gim": (
        "attribution patching with gradient interaction modifications",
        ["edin2025"],
    ),
    "relevance_patching": ("relevance patching", ["jafari2025"]),
    "local_patching": (
        "running every reader without each of its sources, with a first-order estimate of what "
        "follows",
        ["syed2023"],
    ),
    "exact_patching": ("exact activation patching", []),
}
_TASKS = {"ioi": "wang2023", "ioi_swap": "wang2023", "greater_than": "hanna2023"}

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}

REFERENCES = {
    "draye2025": (
        "article",
        {
            "title": "Sparse Attention Post-Training for Mechanistic Interpretability",
            "author": "Draye, Florent and Lei, Anson and Pan, Hsiao-Ru and Posner, Ingmar and "
            'Sch{\\"o}lkopf, Bernhard',
            "journal": "arXiv preprint arXiv:2512.05865",
            "year": "2025",
        },
    ),
    "syed2023": (
        "article",
        {
            "title": "Attribution Patching Outperforms Automated Circuit Discovery",
            "author": "Syed, Aaquib and Rager, Can and Conmy, Arthur",
            "journal": "arXiv preprint arXiv:2310.10348",
            "year": "2023",
        },
    ),
    "edin2025": (
        "article",
        {
            "title": "{GIM}: Improved Interpretability for Large Language Models",
            "author": "Edin, Joakim and Csord{\\'a}s, R{\\'o}bert and Ruotsalo, Tuukka and Wu, "
            "Zhengxuan and Maistro, Maria and Huang, Jing and Maal{\\o}e, Lars",
            "journal": "arXiv preprint arXiv:2505.17630",
            "year": "2025",
        },
    ),
    "jafari2025": (
        "article",
        {
            "title": "{RelP}: Faithful and Efficient Circuit Discovery in Language Models via "
            "Relevance Patching",
            "author": "Rezaei Jafari, Farnoush and Eberle, Oliver and Khakzar, Ashkan and Nanda, "
            "Neel",
            "journal": "arXiv preprint arXiv:2508.21258",
            "year": "2025",
        },
    ),
    "hanna2024": (
        "article",
        {
            "title": "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model "
            "Mechanisms",
            "author": "Hanna, Michael and Pezzelle, Sandro and Belinkov, Yonatan",
            "journal": "arXiv preprint arXiv:2403.17806",
            "year": "2024",
        },
    ),
    "wang2023": (
        "inproceedings",
        {
            "title": "Interpretability in the Wild: a Circuit for Indirect Object Identification "
            "in {GPT-2} Small",
            "author": "Wang, Kevin and Variengien, Alexandre and Conmy, Arthur and Shlegeris, "
            "Buck and Steinhardt, Jacob",
            "booktitle": "International Conference on Learning Representations",
            "year": "2023",
        },
    ),
    "hanna2023": (
        "article",
        {
            "title": "How does {GPT-2} compute greater-than?: Interpreting mathematical abilities "
            "in a pre-trained language model",
            "author": "Hanna, Michael and Liu, Ollie and Variengien, Alexandre",
            "journal": "arXiv preprint arXiv:2305.00586",
            "year": "2023",
        },
    ),
    "shao1989": (
        "article",
        {
            "title": "A General Theory for Jackknife Variance Estimation",
            "author": "Shao, Jun and Wu, C. F. Jeff",
            "journal": "The Annals of Statistics",
            "volume": "17",
            "number": "3",
            "pages": "1176--1197",
            "year": "1989",
        },
    ),
    "nanda2022": (
        "misc",
        {
            "title": "{TransformerLens}",
            "author": "Nanda, Neel and Bloom, Joseph",
            "howpublished": "github.com/TransformerLensOrg/TransformerLens",
            "year": "2022",
        },
    ),
}
"""The references that a methods paragraph may cite: kind and fields of each, by key."""


def methods_text(comparison: Comparison) -> str:
    """Returns paragraphs for the methods section: models, prompts, circuits, statistics, software.

    Citations are keys of `REFERENCES` in Markdown's form, `[@syed2023]`; see `as_latex`.

    Raises:
        ValueError: nothing was compared, or there is one model alone.
    """
    if not comparison.is_pair:
        raise ValueError(
            "these are results of one model; a methods paragraph is written of a comparison, see "
            "`circuits compare`"
        )
    if not comparison.discoveries:
        raise ValueError("no behaviour was compared, so there is nothing to describe")
    config = next(iter(comparison.discoveries.values()))["dense"].config
    parts = (_models(comparison), _prompts(comparison, config), _circuits(config),
             _statistics(comparison), _software(comparison))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def cited(comparison: Comparison) -> list[str]:
    """Returns the keys of `REFERENCES` that `methods_text` cites, each once."""
    text = methods_text(comparison)
    return [key for key in REFERENCES if f"[@{key}]" in text]


def as_latex(text: str) -> str:
    r"""Returns a text of `methods_text` as LaTeX: special characters escaped, `\cite` for keys."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"\[@(\w+)\]", r"\\cite{\1}", escaped)


def bibtex(keys: list[str]) -> str:
    """Returns these references as BibTeX."""
    entries = []
    for key in keys:
        kind, fields = REFERENCES[key]
        lines = [f"  {name} = {{{value}}}" for name, value in fields.items()]
        entries.append(f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}\n")
    return "\n".join(entries)


def latex_tables(comparison: Comparison) -> dict[str, str]:
    """Returns tables as LaTeX for the package booktabs, by name.

    `sizes` has a row for each behaviour and granularity, `models` one for each model and behaviour.
    """
    summary = comparison.summary_table()
    rows: list[Any] = [row for _, row in summary.loc[summary["granularity"] != ""].iterrows()]
    sizes = pd.DataFrame(
        {
            "behaviour": [row["task"] for row in rows],
            "components": [UNITS[row["granularity"]] for row in rows],
            "dense": [sized(row["dense"]) for row in rows],
            "sparse": [sized(row["sparse"]) for row in rows],
            "dense / sparse": [_with_bounds(row, "ratio", 2) for row in rows],
            "F dense": [_with_bounds(row, "faithfulness_dense", 2) for row in rows],
            "F sparse": [_with_bounds(row, "faithfulness_sparse", 2) for row in rows],
        }
    )
    facts = comparison.models_table()
    several: list[Any] = [row for _, row in facts.iterrows()]
    models = pd.DataFrame(
        {
            "model": [row["model"] for row in several],
            "behaviour": [row["task"] for row in several],
            "metric": [f"{row['metric']:.3f}" for row in several],
            "top answer right": [percent(row["accuracy"]) for row in several],
            "CE (nats)": ["" if pd.isna(row["ce"]) else f"{row['ce']:.3f}" for row in several],
            "open edges": [percent(row["density"]) for row in several],
        }
    )
    tables = {"sizes": (sizes, "llrrlll"), "models": (models, "llrrrr")}
    return {
        name: frame.to_latex(index=False, escape=True, column_format=columns)
        for name, (frame, columns) in tables.items()
    }


def _models(comparison: Comparison) -> str:
    sentences = [
        "Attention was made sparse by post-training with a gate on every attention edge "
        "[@draye2025]."
    ]
    for side, facts in comparison.models.items():
        said = [f"{facts.n_parameters:,} parameters"]
        if facts.ce is not None:
            said.append(f"cross-entropy {facts.ce:.3f} nats per token on held-out text")
        if facts.density < 1:
            said.append(
                f"{percent(facts.density)} of its attention edges open at {facts.context} tokens"
            )
        name = f" ({facts.name})" if facts.name != side else ""
        sentences.append(f"The model called {side}{name} has {', '.join(said)}.")
    return " ".join(sentences)


def _prompts(comparison: Comparison, config: DiscoverConfig) -> str:
    behaviours = []
    for task, found in comparison.discoveries.items():
        citation = f" [@{_TASKS[task]}]" if task in _TASKS else ""
        values = ", ".join(
            f"{side} {one.metric_full:.3g} (ablated {one.metric_empty:.3g}, top answer right on "
            f"{percent(one.accuracy)})"
            for side, one in found.items()
        )
        metric = next(iter(found.values())).metric
        behaviours.append(f"{task}{citation}, measured by {metric}: {values}")
    return (
        f"Behaviours are given by pairs of a clean and a corrupted prompt. For each, three sets of "
        f"{config.n_prompts} pairs without a clean prompt in common were drawn (seed "
        f"{config.seed}): one to rank components, one to choose the size of the circuit, one to "
        f"report on. On the last: {'; '.join(behaviours)}."
    )


def _circuits(config: DiscoverConfig) -> str:
    words, keys = _METHODS.get(config.method, (config.method.replace("_", " "), []))
    citation = "".join(f" [@{key}]" for key in keys)
    options = ", ".join(f"{name} = {value}" for name, value in config.method_options.items())
    kinds = ", ".join(UNITS[name] for name in config.granularities)
    sentences = [
        f"Components ({kinds}) were scored by {words}{citation}"
        + (f" ({options})" if options else "")
        + f" and ordered as follows: {_clause(SELECTIONS, config.selection)}.",
        f"A circuit was run with every component outside it replaced by "
        f"{_clause(ABLATIONS, config.ablation)}.",
        "Its faithfulness is (m(circuit) - m(nothing)) / (m(model) - m(nothing)) of the mean "
        f"metric m. The circuit is the smallest for which it stays at {config.target:.4g} or above "
        "at every larger size that was tried along the order.",
    ]
    if config.prune:
        sentences.append(
            "From it components were taken out, those first whose effect in the circuit's own run "
            "was least, until no single one could go without faithfulness"
            + (
                f", less {config.prune_margin:g} of its standard errors over these prompts,"
                if config.prune_margin
                else ""
            )
            + " falling under the target on the prompts that chose the size."
        )
    if config.gates != "follow":
        sentences.append(f"Gates: {_clause(GATES, config.gates)}.")
    return " ".join(sentences)


def _statistics(comparison: Comparison) -> str:
    every = [one for found in comparison.discoveries.values() for d in found.values()
             for one in d.circuits.values()]  # fmt: skip
    drawn = " or ".join(dict.fromkeys(one.faithfulness_interval for one in every))
    redrawn = max(len(one.redrawn_sizes) for one in every)
    fresh = {one.n_measured for one in every if one.measured_on == "reporting"}
    n_random = len(every[0].random_faithfulness)
    text = ""
    if redrawn:
        text = (
            f"Sizes and their ratios have 95 % intervals from {redrawn} repetitions of ranking and "
            "search on random halves of the prompts [@shao1989]: Student's, of the logarithm; "
            "those of a ratio are paired, over the same halves for both models. "
        )
    text += (
        f"Faithfulness has 95 % percentile intervals of a bootstrap (drawn: {drawn}). "
        f"Each circuit stands beside the mean of {n_random} random circuits of its size"
    )
    if fresh:
        text += f", measured on the same {max(fresh)} fresh prompts"
    if comparison.twins:
        text += (
            f". Ratios over {1 + len(comparison.twins)} training seeds are geometric means with "
            "Student's interval of their logarithms"
        )
    return text + "."


def _software(comparison: Comparison) -> str:
    run = comparison.run
    versions = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    text = "Interventions are hooks of TransformerLens [@nanda2022]."
    if versions:
        text += f" Versions: {versions}."
    if "device" in run and "seconds" in run:
        text += f" The comparison took {run['seconds']:.0f} s on {run['device']}"
        text += f" (seed {run['seed']})." if "seed" in run else "."
    return text


def _clause(sentences: Mapping[Any, str], choice: str) -> str:
    """The sentence of a choice as a part of another."""
    sentence = sentences[choice]
    return sentence[0].lower() + sentence[1:].rstrip(".")


def _with_bounds(row: Any, name: str, digits: int) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if math.isnan(low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
