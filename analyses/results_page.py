"""The page of results: each claim, what was measured here, and a verdict.

    python analyses/results_page.py --tables docs/results --page docs/results.md

Every number on the page comes from a table in the folder, and every verdict from the numbers by the
rules below; so the page can be made again, and nobody has typed a result.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pandas as pd

from circuits.comparison.robustness import verdicts
from circuits.figures import UNITS
from circuits.files import write_text
from circuits.numbers import sized

PAPER = "arXiv 2512.05865"
DENSITY = (0.002, 0.004)  # the paper's, at equal cross-entropy
HEADS, ATTENTION_EDGES = (1.4, 4.5), (5.4, 97.0)  # the paper's ratios for 90 % of a behaviour
CONTROL = "dense-finetuned"
CE_TOLERANCE = 0.01
GPT2_HEADS = 144


def write_page(tables: Path, page: Path) -> None:
    """Writes the page from the tables in a folder.

    Raises:
        FileNotFoundError: a table is missing.
    """
    write_text(page, page_text(tables))


def page_text(tables: Path) -> str:
    """Returns the page as Markdown."""
    names = ("models", "summary", "others", "seeds", "transfer", "roles", "robustness", "verbs")
    found = {name: pd.read_csv(tables / f"{name}.csv", keep_default_na=True) for name in names}
    real = tables / "real_text.csv"
    parts = [
        "# Does sparse attention simplify circuits?",
        "Made by `python analyses/evidence.py --out docs/results --real-text real_text` (some "
        "hours on two cores, after `python analyses/real_text.py --out real_text`) from the "
        "tables in `docs/results`; no number on this page was typed. "
        f"{of_intervals(found['summary'])} "
        "Ratios are dense over sparse: "
        "above 1, the sparse model needs fewer.",
        "## The claims",
        claims(found, pd.read_csv(real) if real.is_file() else None),
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
    if real.is_file():
        pair = {
            name: pd.read_csv(tables / f"real_text_{name}.csv")
            for name in ("summary", "others", "models")
        }
        run = pd.read_csv(tables / "real_text_run.csv")
        parts += ["## A language model of real text", real_text(pd.read_csv(real), run, pair)]
    return "\n\n".join(parts) + "\n"


def _if_pruned(path: Path) -> list[str]:
    """The section on pruned circuits, if that comparison was made."""
    if not path.is_file():
        return []
    summary = pd.read_csv(path)
    without = "; their ratio has no interval" if summary["ratio_low"].isna().all() else ""
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


def pruned(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the sizes after and before pruning, and by attribution, dense and sparse."""
    rows: list[Any] = [row for _, row in summary.iterrows()]

    def pair(name: str) -> list[str]:
        return [f"{sized(row[f'{name}_dense'])}, {sized(row[f'{name}_sparse'])}" for row in rows]

    return pd.DataFrame(
        {
            "behaviour": summary["task"],
            "components": summary["granularity"].map(UNITS),
            "dense": summary["dense"].map(sized),
            "sparse": summary["sparse"].map(sized),
            "ratio [95 %]": [with_interval(row).removesuffix(" -") for row in rows],
            "before": pair("prefix"),
            "ratio before [95 %]": [
                f"{row['prefix_ratio']:.2f} "
                f"{between(row['prefix_ratio_low'], row['prefix_ratio_high'])}"
                for row in rows
            ],
            "by attribution": pair("attribution"),
            "ratio by attribution": summary["attribution_ratio"].map("{:.2f}".format),
            "faithfulness": [
                f"{row['faithfulness_dense']:.3f}, {row['faithfulness_sparse']:.3f}" for row in rows
            ],
        }
    )


def _orders_if_varied(table: pd.DataFrame) -> list[str]:
    """The sizes by order and gates, of a table that was made since they are varied."""
    if "selection" not in table.columns:
        return []
    return [
        "The sizes at the target of 0.9 by order and gates, each with the other at its default "
        "(`absolute`, `follow`):",
        markdown(orders(table)),
    ]


def orders(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the sizes at 0.9 under each order and kind of gates, other choices at their base."""
    others = ["method", "ablation", "prompts"]
    base = table.iloc[0]
    # The task's own metric comes first.
    own = table.groupby("task", sort=False)["metric"].transform("first")
    at_base = (table[others] == base[others]).all(axis=1) & (table["metric"] == own)
    rows = table[at_base & (table["target"] == 0.9)]
    cells = {
        "behaviour": rows["task"],
        "components": rows["granularity"],
        "order": rows["selection"],
        "gates": rows["gates"],
        "dense": rows["dense"],
        "sparse": rows["sparse"],
        "ratio [95 %]": [with_interval(row) for _, row in rows.iterrows()],
    }
    return pd.DataFrame(cells).sort_values(["behaviour", "components"], kind="stable")


def claims(found: dict[str, pd.DataFrame], real: pd.DataFrame | None) -> str:
    """Returns the table of the paper's claims, what was measured here, and verdicts."""
    models = found["models"].drop_duplicates("model").set_index("model")
    rows = [
        density_claim("embedded pair", models.loc["dense"], models.loc["sparse"]),
    ]
    if real is not None:
        by_name = real.set_index("model")
        rows.append(density_claim("real text", by_name.loc["dense"], by_name.loc["sparse"]))
    for granularity, paper in (("head", HEADS), ("attention_edge", ATTENTION_EDGES)):
        chosen, drawn = (
            found[name][found[name]["granularity"] == granularity] for name in ("summary", "seeds")
        )
        counted = drawn.assign(
            **{f"ratio{end}": drawn[f"attribution_ratio{end}"] for end in ("", "_low", "_high")}
        )
        claim = f"fewer {UNITS[granularity]} for 90 % of a behaviour"
        shared = {PAPER: f"{paper[0]:g} to {paper[1]:g} times"}
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


def ratios_by_task(rows: pd.DataFrame) -> str:
    """Returns each task's ratio with its interval, in a row of words."""
    return "; ".join(f"{row['task']} {with_interval(row)}" for _, row in rows.iterrows())


def attribution_counts(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the ratios of the counts by attribution: of the pair, over seeds, of the control."""
    summary, seeds_, others = (
        found[name].set_index(["task", "granularity"]) for name in ("summary", "seeds", "others")
    )
    control = others[others["model"] == CONTROL]["attribution_ratio"]
    rows: list[Any] = [row for _, row in seeds_.loc[summary.index].iterrows()]
    return pd.DataFrame(
        {
            "behaviour": summary.index.get_level_values("task"),
            "components": summary.index.get_level_values("granularity").map(UNITS),
            "sparse": [f"{one:.2f}" for one in summary["attribution_ratio"]],
            "over seeds [95 %]": [
                f"{row['attribution_ratio']:.2f} "
                f"{between(row['attribution_ratio_low'], row['attribution_ratio_high'])}"
                for row in rows
            ],
            CONTROL: [f"{one:.2f}" for one in control.loc[summary.index]],
        }
    )


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


def ratio_verdict(rows: pd.DataFrame, least: float) -> str:
    """Returns `reproduced` if all ratios are clear and big enough, `partly` if some are clear."""
    clear = rows["ratio_low"] > 1
    if (clear & (rows["ratio"] >= least)).all():
        return "reproduced"
    if not clear.any():
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
        f"{UNITS[row['granularity']]} of `{row['task']}` ({with_interval(row)})"
        for _, row in clear.iterrows()
    ]
    said.append(
        f"- Over training seeds, of {len(drawn)} ratios clearly above or below 1: "
        f"{'; '.join(known) or 'none'}."
    )
    others = found["others"]
    for name, rows in others[others["model"] != "sparse"].groupby("model", sort=False):
        known = rows[rows["ratio"].notna()]
        fewer = int((known["ratio_low"] > 1).sum())
        more = int((known["ratio_high"] < 1).sum())
        said.append(
            f"- `{name}`: of {len(known)} circuits, clearly smaller than the dense model's in "
            f"{fewer}, clearly bigger in {more}."
        )
    return ["\n".join(said)]


def sizes(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of sizes with both intervals."""
    templates = summary.rename(columns={"templates_low": "low", "templates_high": "high"})
    return pd.DataFrame(
        {
            "behaviour": summary["task"],
            "components": summary["granularity"].map(UNITS),
            "dense": summary["dense"].map(sized),
            "sparse": summary["sparse"].map(sized),
            "ratio [95 %]": [with_interval(row) for _, row in summary.iterrows()],
            "p": summary["p"].map("{:.3f}".format),
            "templates": [between(row["low"], row["high"]) for _, row in templates.iterrows()],
            "faithfulness": [
                f"{row['faithfulness_dense']:.3f}, {row['faithfulness_sparse']:.3f}"
                for _, row in summary.iterrows()
            ],
        }
    )


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


def controls(others: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each behaviour and granularity, and a column for each other model."""
    cells = others.assign(cell=[with_interval(row) for _, row in others.iterrows()])
    table = cells.pivot_table(
        index=["task", "granularity"], columns="model", values="cell", aggfunc="first", sort=False
    )
    return table.reset_index()


def quality(models: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each model: cross-entropy, density, and accuracy on each behaviour."""
    table = models.assign(accuracy=models["accuracy"].map("{:.0%}".format)).pivot_table(
        index=["model", "ce", "density"], columns="task", values="accuracy", aggfunc="first",
        sort=False,
    )  # fmt: skip
    table = table.reset_index().fillna("does not do it")
    return table.assign(
        ce=table["ce"].map("{:.4f}".format), density=table["density"].map("{:.2%}".format)
    )


def seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the ratios over training seeds, a column for each kind of component."""
    cells = table.assign(cell=[with_interval(row) for _, row in table.iterrows()])
    cells = cells.assign(granularity=cells["granularity"].map(UNITS))
    wide = cells.pivot_table(
        index=["task"], columns="granularity", values="cell", aggfunc="first", sort=False
    )
    return wide.reset_index()


def role_counts(roles: pd.DataFrame) -> pd.DataFrame:
    """Returns how many heads of each circuit have each role."""
    inside = roles[roles["in_circuit"]].fillna({"role": "none of these"})
    counts = inside.groupby(["task", "model", "role"], sort=False).size().unstack(fill_value=0)
    return counts.reset_index()


def real_text(table: pd.DataFrame, run: pd.DataFrame, pair: dict[str, pd.DataFrame]) -> str:
    """Returns the tables of the model of real text, and of its circuits."""
    shown = pd.DataFrame(
        {
            "model": table["model"],
            "ce": table["ce"].map("{:.4f}".format),
            "against dense [95 %]": [
                f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
                for _, row in table.iterrows()
            ],
            "density": table["density"].map("{:.2%}".format),
        }
    )
    ces = table.set_index("model")["ce"]
    spent, gained = (
        ces["sparse"] - ces["dense, trained on"],
        ces["dense"] - ces["dense, trained on"],
    )
    context, n, files = (int(table[name].iloc[0]) for name in ("context", "sequences", "files"))
    return (
        "A GPT-2 of 4 layers trained from scratch on the source of Python's standard library by "
        f"`analyses/real_text.py`; CE in nats per token on {n} sequences of {context} tokens of "
        f"{files} held-out files, which no step was taken on and no state chosen by. Intervals are "
        "over files. `top k` keeps the k highest scores of each query, without training.\n\n"
        f"{markdown(shown)}\n\n"
        f"Training on without a gate gains {gained:.3f} nats over the dense model. Measured by "
        f"that, the sparse model, trained for as long, spends {spent:.3f} nats on its sparsity."
        "\n\n"
        "![Cross-entropy against density](images/frontier.png)\n\n"
        f"{pressure(run, table)}\n\n"
        "The circuits behind one behaviour of code, `brackets`: an open bracket is closed by its "
        "own kind (`]` against `)`, logit difference). The models put the right bracket first "
        f"among all tokens on {listed_accuracy(pair['models'])} of the held-out prompts.\n\n"
        f"{_if_older(pair['summary'])}{markdown(sizes(pair['summary']))}\n\n"
        f"{markdown(controls(pair['others']))}"
    )


def of_intervals(summary: pd.DataFrame) -> str:
    """Returns what the intervals of sizes are drawn from, which older tables did otherwise."""
    width = "one without width says that {} these whole-number sizes, not that they are certain."
    if (summary["interval"] == "halves of ranking and sizing prompts").any():
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


def _if_older(summary: pd.DataFrame) -> str:
    """What must be known of a table that was made before fresh prompts measured the circuits."""
    if "measured_on" in summary.columns:
        return ""
    return (
        "These two tables are older than the definitions in [Concepts](concepts.md): sizes are the "
        "first crossing of the target on a grid, faithfulness is that of the prompts that chose "
        "the size, and intervals are not corrected for few prompts of a template.\n\n"
    )


def pressure(run: pd.DataFrame, table: pd.DataFrame) -> str:
    """Returns what holds the density up: the price that lambda asks, and how few heads share it."""
    moved = (run["lambda"] / run["lambda"].iloc[0] - 1).abs() > 1e-6
    held, followed = run[~moved], run[moved]
    last, kept = held.iloc[-1], followed[followed["ce"] <= followed["tau"]]
    models, queries = table.set_index("model"), (table["context"].iloc[0] + 1) / 2
    keys = models["density"] * models["heads"] * queries
    small = keys["sparse"] / (GPT2_HEADS * queries)
    swing = run["ce"].diff().abs().iloc[1:]
    return (
        f"lambda, the price of cross-entropy, was held at {last['lambda']:.3g} up to step "
        f"{last['step']:,.0f}, while the learning rate was high: the density fell to "
        f"{last['density']:.2%} there, {last['ce'] - last['tau']:+.3f} nats from the bound. Then "
        f"it followed the bound, between {followed['lambda'].min():.2g} and "
        f"{followed['lambda'].max():.2g}; {len(kept)} of these {len(followed)} states keep it, "
        f"with {kept['density'].min():.2%} to {kept['density'].max():.2%} open. So what limits the "
        "density is what cross-entropy may cost: with 0.1 nats more to give "
        f"(`sparse-slack-0.1`), {models['density']['sparse-slack-0.1']:.2%} stay open. And it is a "
        f"share of few heads. {models['density']['sparse']:.2%} are {keys['sparse']:.0f} keys a "
        f"query in all {models['heads']['sparse']} heads together, where a dense model reads "
        f"{models['heads']['sparse'] * queries:,.0f}; in GPT-2 small, with {GPT2_HEADS} heads, as "
        f"many would be {small:.2%}. Neighbouring states differ by {swing.median():.3f} nats (the "
        f"median of the run), single batches of its second half lie between "
        f"{run['batch_ce_low'].iloc[len(run) // 2 :].min():.2f} and "
        f"{run['batch_ce_high'].iloc[len(run) // 2 :].max():.2f}."
    )


def listed_accuracy(models: pd.DataFrame) -> str:
    """Returns each model's accuracy as words."""
    return ", ".join(f"{row['accuracy']:.0%} ({row['model']})" for _, row in models.iterrows())


def with_interval(row: Any) -> str:
    """Returns "1.60 [1.00, 2.00]", or why there is no ratio."""
    if isinstance(row["ratio"], float) and math.isnan(row["ratio"]):
        return "does not do the task"
    return f"{row['ratio']:.2f} {between(row['ratio_low'], row['ratio_high'])}"


def between(low: float, high: float) -> str:
    """Returns "[1.00, 2.00]", or a dash where there is no interval."""
    return "-" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"


def listed(names: list[str]) -> str:
    """Returns names as words, or "none"."""
    return ", ".join(f"`{name}`" for name in names) if names else "none"


def rounded_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the frame with three decimals."""
    return frame.apply(
        lambda column: column.map("{:.3f}".format) if column.dtype.kind == "f" else column
    )


def markdown(frame: pd.DataFrame) -> str:
    """Returns a table in Markdown, its column names as words."""
    head = [str(name).replace("_", " ") for name in frame.columns]
    rows = [[str(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Reads the command line and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    arguments = parser.parse_args()
    write_page(arguments.tables, arguments.page)


if __name__ == "__main__":
    main()
