"""The page of results: each claim, what was measured here, and a verdict.

    python analyses/results_page.py --tables docs/results --page docs/results.md

Every number on the page comes from a table in the folder, and every verdict from the numbers by the
rules below; so the page can be made again, and nobody has typed a result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from real_model_page import SPEECHES, circuit_rows, head_rows, pruned_rows, with_error
from real_text_page import section
from results_tables import (
    attribution_counts,
    controls,
    heads_of_prompts,
    listed,
    markdown,
    orders,
    pruned,
    quality,
    ratios_by_task,
    role_counts,
    rounded_frame,
    seeds,
    sizes,
    with_interval,
)

from circuits.comparison.robustness import verdicts
from circuits.figures import UNITS
from circuits.files import write_text

PAPER = "arXiv 2512.05865"
DENSITY = (0.002, 0.004)  # the paper's, at equal cross-entropy
HEADS, ATTENTION_EDGES = (1.4, 4.5), (5.4, 97.0)  # the paper's ratios for 90 % of a behaviour
CE_TOLERANCE = 0.01


def write_page(tables: Path, page: Path) -> None:
    """Writes the page from the tables in a folder.

    Raises:
        FileNotFoundError: a table is missing.
    """
    write_text(page, page_text(tables))


def page_text(tables: Path) -> str:
    """Returns the page as Markdown."""
    names = (
        "models",
        "summary",
        "others",
        "seeds",
        "transfer",
        "roles",
        "robustness",
        "verbs",
        "heads",
    )
    found = {name: pd.read_csv(tables / f"{name}.csv", keep_default_na=True) for name in names}
    real = tables / "real_text.csv"
    language = tables.parent / "real_model"
    parts = [
        "# Does sparse attention simplify circuits?",
        "Made by `python analyses/evidence.py --out docs/results --real-text real_text` (some "
        "hours on two cores, after `python analyses/real_text.py --out real_text`) from the "
        "tables in `docs/results` and `docs/real_model`; no number on this page was typed. "
        f"{of_intervals(found['summary'])} "
        "Ratios are dense over sparse: "
        "above 1, the sparse model needs fewer.",
        "## A real language model",
        language_model(language),
        "The rest of this page is about small models that are trained here, on which everything "
        "can be repeated: over seeds, with controls, under other choices.",
        "## The claims",
        claims(found, pd.read_csv(real) if real.is_file() else None, language),
        "## What holds, in plain words",
        *sentences(found),
        "## Sizes at the target",
        markdown(sizes(found["summary"])),
        "`templates` is the interval when whole templates are drawn in place of prompts: it asks "
        "whether other wordings would have given the same ratio. A behaviour with fewer than five "
        "templates has none. `faithfulness` is that of both circuits, dense and sparse.",
        *_if_pruned(tables / "pruned.csv"),
        "## Controls",
        "`dense-finetuned` took the same optimiser, schedule, batches and number of steps as the "
        "sparse twin, without a gate. `dense-top4` is the dense model with the 4 highest scores of "
        "each query only, untrained. `sparse-seed1` and `sparse-seed2` are twins, post-trained "
        "from other seeds. The ratio is the dense model's size over that model's.",
        markdown(quality(found["models"])),
        markdown(controls(found["others"])),
        "## Training seeds",
        "The geometric mean of the ratio over the sparse model and its two twins, with Student's "
        "95 % interval: what another seed of post-training would give. Three seeds make it wide, "
        "and three circuits of one size make it a point, which says no more than that. The dense "
        "model is the same one.",
        markdown(seeds(found["seeds"])),
        "## The count by attribution",
        "Dense over sparse again, but of how many components hold 90 % of all absolute "
        "attribution, without interventions; `over seeds` as above, `dense-finetuned` over the "
        "same dense model. A shut gate scores exactly 0, so this count favours gated models by "
        "construction, and what it leaves out was not tried. Whether the paper counts so could "
        "not be verified.",
        markdown(attribution_counts(found)),
        "In how many of the heads does 80 % of the attribution of a single prompt lie? Means over "
        "prompts of their own, with standard errors; by attribution patching, again without "
        "interventions:",
        markdown(heads_of_prompts(found["heads"])),
        "## The same algorithm?",
        "Each circuit run in the other model, on held-out prompts. `own` is what the circuit "
        "found in that model itself recovers; `random` what random circuits of that size do.",
        markdown(rounded_frame(found["transfer"])),
        "Heads of the circuits by what they do (`circuits/comparison/roles.py` defines the roles):",
        markdown(role_counts(found["roles"])),
        "## What `subject_verb` is in these models",
        "The logit of *are* minus that of *is* after prompts of all four kinds. The task's "
        "prompts, like the corpus, have nouns of two numbers, so either noun gives the verb away.",
        markdown(rounded_frame(found["verbs"])),
        verb_sentence(found["verbs"]),
        "## Other choices",
        "The ratio under other attribution methods, orders of components, gates held at their "
        "clean values, ablations, metrics, numbers of prompts and targets (0.5 to 0.99), each "
        "varied by itself; the table is `docs/results/robustness.csv`.",
        "\n".join(f"- {one}" for one in verdicts(found["robustness"])),
        *_orders_if_varied(found["robustness"]),
    ]
    parts += section(tables)
    return "\n\n".join(parts) + "\n"


def _if_pruned(path: Path) -> list[str]:
    """The section on pruned circuits, if that comparison was made."""
    if not path.is_file():
        return []
    summary = pd.read_csv(path)
    without = "; their ratio has no interval" if all(summary["ratio_low"].isna()) else ""
    return [
        "## Pruned circuits, and the count by attribution",
        "By `circuits compare --prune`, as sizes are defined now: the smallest prefix of the "
        "ranking from which 90 % stays recovered (`before`), and what is left of it when no single "
        "component can go without missing the target on the prompts that chose it (`dense`, "
        f"`sparse`{without}). `by attribution` counts without interventions, "
        "how many components hold 90 % of all absolute attribution; a shut gate scores exactly 0, "
        "so it favours gated models. `faithfulness` is on fresh prompts, where a pruned circuit "
        "may miss the target: it is fitted to the prompts that chose it.",
        markdown(pruned(summary)),
    ]


def _orders_if_varied(table: pd.DataFrame) -> list[str]:
    """The sizes by order and gates, of a table that was made since they are varied."""
    if "selection" not in table.columns:
        return []
    return [
        "The sizes at the target of 0.9 by order and gates, each with the other at its default "
        "(`absolute`, `follow`):",
        markdown(orders(table)),
    ]


def language_model(folder: Path) -> str:
    """Returns what is known of the twin of SmolLM2-135M, in short."""
    dense, sparse = on_speeches(folder)
    kept = pd.read_csv(folder / "behaviours.csv").set_index("model").loc["sparse"]
    kept = kept[kept["does"]]["kept"]
    return (
        "`smollm2-sparse` is a twin of SmolLM2-135M, within a bound on KL(dense || twin). On "
        f"speeches that nothing was trained on, {sparse['density']:.1%} of its attention edges "
        f"are open at {sparse['context']} tokens, at a cross-entropy of "
        f"{with_error(sparse, 'difference', sign='+')} against the dense model's "
        f"{dense['ce']:.3f} nats, and KL {with_error(sparse, 'kl')}. It keeps {kept.min():.0%} to "
        f"{kept.max():.0%} of the margin in {len(kept)} behaviours. The smallest circuits that "
        "recover 90 %:\n\n"
        f"{circuit_rows(folder)}\n\n"
        "What is left of such circuits when all is taken out again that can go, of the control, "
        "too, which was trained on the same text without a gate:\n\n"
        f"{pruned_rows(folder)}\n\n"
        "In how many of the heads 80 % of the attribution of a single prompt lies, without "
        "interventions:\n\n"
        f"{head_rows(folder)}\n\n"
        "[A real model](real_model.md) has all tables, what is behind them, and how to make them."
    )


def on_speeches(folder: Path) -> tuple[Any, Any]:
    """Returns the rows of the dense and the sparse model on the longest speeches."""
    table = pd.read_csv(folder / "text.csv")
    table = rows_of(table, "text", SPEECHES)
    longest = rows_of(table, "context", table["context"].max()).set_index("model")
    return longest.loc["dense"], longest.loc["sparse"]


def claims(found: dict[str, pd.DataFrame], real: pd.DataFrame | None, language: Path) -> str:
    """Returns the table of the paper's claims, what was measured here, and verdicts."""
    models = found["models"].drop_duplicates("model").set_index("model")
    rows = [
        density_claim("SmolLM2-135M", *on_speeches(language)),
        density_claim("embedded pair", models.loc["dense"], models.loc["sparse"]),
    ]
    circuits, pruned_ = (pd.read_csv(language / f"{name}.csv") for name in ("circuits", "pruned"))
    if real is not None:
        by_name = real.set_index("model")
        rows.append(density_claim("real text", by_name.loc["dense"], by_name.loc["sparse"]))
    for granularity, paper in (("head", HEADS), ("attention_edge", ATTENTION_EDGES)):
        chosen, drawn = (
            rows_of(found[name], "granularity", granularity) for name in ("summary", "seeds")
        )
        counted = drawn.assign(
            **{f"ratio{end}": drawn[f"attribution_ratio{end}"] for end in ("", "_low", "_high")}
        )
        claim = f"fewer {UNITS[granularity]} for 90 % of a behaviour"
        shared = {PAPER: f"{paper[0]:g} to {paper[1]:g} times"}
        for how, table in (("", circuits), (", pruned", pruned_)):
            of_language = rows_of(table, "granularity", granularity)
            rows.append(
                {
                    "claim": f"{claim}, by intervention{how} (SmolLM2-135M)",
                    **shared,
                    "measured here": ratios_by_task(of_language),
                    "over seeds": "-",
                    "verdict": ratio_verdict(of_language, paper[0]),
                }
            )
        rows += [
            {
                "claim": f"{claim}, by intervention",
                **shared,
                "measured here": ratios_by_task(chosen),
                "over seeds": ratios_by_task(drawn),
                "verdict": ratio_verdict(chosen, paper[0]),
            },
            {
                "claim": f"{claim}, counted by attribution",
                **shared,
                "measured here": "; ".join(
                    f"{row['task']} {row['attribution_ratio']:.2f}" for _, row in chosen.iterrows()
                ),
                "over seeds": ratios_by_task(counted),
                "verdict": ratio_verdict(counted, paper[0]),
            },
        ]
    return markdown(pd.DataFrame(rows))


def density_claim(where: str, dense: Any, sparse: Any) -> dict[str, str]:
    """Returns the claim that few attention edges stay open at the dense model's CE."""
    difference = sparse["ce"] - dense["ce"]
    kept = difference <= CE_TOLERANCE
    known = f" [{sparse['low']:+.4f}, {sparse['high']:+.4f}]" if "low" in sparse else ""
    if kept and sparse["density"] <= DENSITY[1]:
        verdict = "reproduced"
    else:
        verdict = "partly" if kept and sparse["density"] <= 5 * DENSITY[1] else "not reproduced"
    return {
        "claim": f"attention edges open at equal CE ({where})",
        PAPER: f"{DENSITY[0]:.1%} to {DENSITY[1]:.1%}",
        "measured here": f"{sparse['density']:.2%} at {sparse['context']:.0f} tokens, "
        f"CE {difference:+.4f}{known} nats against the dense model",
        "over seeds": "-",
        "verdict": verdict,
    }


def rows_of(table: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    """Returns the rows of a table that have this value in a column."""
    return table.loc[table[column].eq(value)]


def ratio_verdict(rows: pd.DataFrame, least: float) -> str:
    """Returns `reproduced` if all ratios are clear and big enough, `partly` if some are clear."""
    clear = rows["ratio_low"] > 1
    if all(clear & (rows["ratio"] >= least)):
        return "reproduced"
    if not any(clear):
        return "not reproduced"
    names = ", ".join(rows["task"][clear])
    return f"partly: clearly fewer in {names}"


def sentences(found: dict[str, pd.DataFrame]) -> list[str]:
    """Returns what holds and what does not, a sentence for each granularity and control."""
    said = []
    for granularity, rows in found["summary"].groupby("granularity", sort=False):
        fewer = list(rows["task"][rows["ratio_low"] > 1])
        more = list(rows["task"][rows["ratio_high"] < 1])
        open_ = [task for task in rows["task"] if task not in fewer + more]
        said.append(
            f"- {UNITS[str(granularity)][0].upper()}{UNITS[str(granularity)][1:]}: the sparse "
            f"model needs clearly fewer in {listed(fewer)}, clearly more in {listed(more)}; no "
            f"clear difference in {listed(open_)}."
        )
    drawn = found["seeds"]
    clear = drawn[(drawn["ratio_low"] > 1) | (drawn["ratio_high"] < 1)]
    known = [
        f"{UNITS[str(row['granularity'])]} of `{row['task']}` ({with_interval(row)})"
        for _, row in clear.iterrows()
    ]
    said.append(
        f"- Over training seeds, of {len(drawn)} ratios clearly above or below 1: "
        f"{'; '.join(known) or 'none'}."
    )
    others: Any = found["others"]
    for name, rows in others[others["model"] != "sparse"].groupby("model", sort=False):
        known = rows[rows["ratio"].notna()]
        fewer = int((known["ratio_low"] > 1).sum())
        more = int((known["ratio_high"] < 1).sum())
        said.append(
            f"- `{name}`: of {len(known)} circuits, clearly smaller than the dense model's in "
            f"{fewer}, clearly bigger in {more}."
        )
    return ["\n".join(said)]


def verb_sentence(verbs: pd.DataFrame) -> str:
    """Returns by which noun the models choose the verb: how much each noun moves the logits."""
    numbers = verbs.set_index("model")
    plural_subject = numbers.filter(like="plural subject").mean(axis=1)
    plural_noun = numbers.filter(like="plural noun").mean(axis=1)
    by_subject = 2 * (plural_subject - numbers.mean(axis=1))
    by_noun = 2 * (plural_noun - numbers.mean(axis=1))
    said = ", ".join(
        f"`{name}` {by_subject[name]:+.1f} and {by_noun[name]:+.1f}" for name in numbers.index
    )
    near = (by_noun.abs() > by_subject.abs()).all()
    verdict = (
        "All of them answer by the noun next to the verb, whose number is the other one: a "
        "shortcut that the corpus allows. So the task measures here how models carry out this "
        "rule, not agreement; the ratios stand, and say that the sparse models do little besides."
        if near
        else "Not all of them answer by the noun next to the verb."
    )
    return f"A plural subject and a plural noun move it by: {said}. {verdict}"


def of_intervals(summary: pd.DataFrame) -> str:
    """Returns what the intervals of sizes are drawn from, which older tables did otherwise."""
    width = "one without width says that {} these whole-number sizes, not that they are certain."
    if any(summary["interval"].eq("halves of ranking and sizing prompts")):
        return (
            "Intervals are 95 % intervals over the prompts that components were ranked on and "
            "sizes were chosen on, paired between models; "
            + width.format("all halves of them have")
        )
    return (
        "Intervals are 95 % bootstrap intervals over the prompts that sizes were chosen on, paired "
        "between models; " + width.format("every resample has") + " They hold the ranking fixed, "
        "and with other prompts to rank on sizes move by more: since these tables were made, "
        "`circuits compare` draws these anew, too ([Concepts](concepts.md))."
    )


def main() -> None:
    """Reads the command line and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    arguments = parser.parse_args()
    write_page(arguments.tables, arguments.page)


if __name__ == "__main__":
    main()
