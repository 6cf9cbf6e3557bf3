"""The tables of docs/results.md, and how their cells are written."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from circuits.figures import UNITS
from circuits.numbers import sized

CONTROL = "dense-finetuned"


def pruned(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the sizes after and before pruning, and by attribution, dense and sparse."""
    rows: list[Any] = [row for _, row in summary.iterrows()]

    def pair(name: str) -> list[str]:
        return [f"{sized(row[f'{name}_dense'])}, {sized(row[f'{name}_sparse'])}" for row in rows]

    return pd.DataFrame(
        {
            "behaviour": summary["task"],
            "components": summary["granularity"].map(UNITS.get),
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
            "components": summary.index.get_level_values("granularity").map(UNITS.get),
            "sparse": [f"{one:.2f}" for one in summary["attribution_ratio"]],
            "over seeds [95 %]": [
                f"{row['attribution_ratio']:.2f} "
                f"{between(row['attribution_ratio_low'], row['attribution_ratio_high'])}"
                for row in rows
            ],
            CONTROL: [f"{one:.2f}" for one in control[summary.index]],
        }
    )


def heads_of_prompts(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the numbers of heads that hold 80 % of single prompts' attribution, by model."""
    cells = table.assign(heads=[f"{r['mean']:.1f} ± {r['sem']:.1f}" for _, r in table.iterrows()])
    models = list(dict.fromkeys(table["model"]))
    wide = cells.pivot(index="task", columns="model", values="heads")
    return (
        wide.loc[list(dict.fromkeys(table["task"])), models].rename_axis("behaviour").reset_index()
    )


def sizes(summary: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of sizes with both intervals."""
    templates = summary.rename(columns={"templates_low": "low", "templates_high": "high"})
    return pd.DataFrame(
        {
            "behaviour": summary["task"],
            "components": summary["granularity"].map(UNITS.get),
            "dense": summary["dense"].map(sized),
            "sparse": summary["sparse"].map(sized),
            "ratio [95 %]": [with_interval(row) for _, row in summary.iterrows()],
            "p": summary["p"].map("{:.3f}".format),
            "templates": [between(row["low"], row["high"]) for row in templates.to_dict("records")],
            "faithfulness": [
                f"{row['faithfulness_dense']:.3f}, {row['faithfulness_sparse']:.3f}"
                for _, row in summary.iterrows()
            ],
        }
    )


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
    cells = cells.assign(granularity=cells["granularity"].map(UNITS.get))
    wide = cells.pivot_table(
        index=["task"], columns="granularity", values="cell", aggfunc="first", sort=False
    )
    return wide.reset_index()


def role_counts(roles: pd.DataFrame) -> pd.DataFrame:
    """Returns how many heads of each circuit have each role."""
    inside = roles[roles["in_circuit"]].fillna({"role": "none of these"})
    counts = inside.groupby(["task", "model", "role"], sort=False).size().unstack(fill_value=0)
    return counts.reset_index()


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
    columns = {name: frame[name].map("{:.3f}".format) for name in frame.select_dtypes("floating")}
    return frame.assign(**columns)


def markdown(frame: pd.DataFrame) -> str:
    """Returns a table in Markdown, its column names as words."""
    head = [str(name).replace("_", " ") for name in frame.columns]
    rows = [[str(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
