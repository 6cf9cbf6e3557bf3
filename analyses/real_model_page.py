"""The tables of docs/real_model.md, out of those in docs/real_model: nobody has typed a result.

    python analyses/real_model_page.py --docs docs

`real_model.py --docs docs` puts new tables there and calls this. A table stands on the page between
`<!-- table: NAME -->` and `<!-- end -->`; what is around these is text, which stays.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from results_tables import UNITS, heads_of_prompts, markdown, with_interval

from circuits.files import write_text
from circuits.numbers import sized

TABLES = {
    "text.csv": "text.csv",
    "behaviours.csv": "behaviours.csv",
    "run.csv": "run.csv",
    "sources.txt": "text/sources.md",
    "circuits.csv": "compare/summary.csv",
    "pruned.csv": "pruned.csv",
    "pruned_others.csv": "pruned_others.csv",
    "heads.csv": "heads.csv",
}
"""The tables of the page, and what `real_model.py` writes them as."""

SPEECHES = "speeches"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_page(docs: Path) -> None:
    """Writes the tables into the page."""
    page = docs / "real_model.md"
    write_text(page, filled(page.read_text(encoding="utf-8"), docs / "real_model"))


def filled(page: str, folder: Path) -> str:
    """Returns the page with what the tables in the folder say."""

    def block(found: re.Match[str]) -> str:
        try:
            said = BLOCKS[found[2]](folder)
        except FileNotFoundError:
            said = "*Not measured yet.*"
        return f"{found[1]}\n{said}\n\n{found[3]}"

    return _BLOCK.sub(block, page)


def sources(folder: Path) -> str:
    """Returns packages, licences and sizes of the text."""
    return (folder / "sources.txt").read_text(encoding="utf-8").strip()


def runs(folder: Path) -> str:
    """Returns the states that the runs passed through."""
    rows = []
    for row in rows_of(pd.read_csv(folder / "run.csv")):
        bound = "" if pd.isna(row["kl"]) else f"{row['kl']:.4f} (bound {row['epsilon']:g})"
        rows.append(
            {
                "run": row["run"],
                "step": row["step"],
                "tokens": f"{row['tokens'] / 1e6:.2f} M",
                "minutes": f"{row['seconds'] / 60:.1f}",
                "CE": f"{row['ce']:.3f}",
                "KL": bound,
                "open": "" if pd.isna(row["density"]) else f"{row['density']:.2%}",
            }
        )
    return markdown(pd.DataFrame(rows))


def text(folder: Path) -> str:
    """Returns what the models lose on each kind of text, a table for each context."""
    table = pd.read_csv(folder / "text.csv")
    parts = []
    for context, cells in table.groupby("context"):
        rows = []
        for kind, models in cells.groupby("text", sort=False):
            by_name = models.set_index("model")
            row = {"text": kind, "sequences": by_name.loc["dense", "sequences"]}
            row["dense CE"] = with_error(by_name.loc["dense"], "ce")
            for name, values in by_name.drop("dense").to_dict("index").items():
                row[f"{name}: CE"] = with_error(values, "difference", sign="+")
                row[f"{name}: KL"] = with_error(values, "kl")
                if values["density"] < 1:
                    row[f"{name}: open"] = f"{values['density']:.2%}"
            rows.append(row)
        parts += [f"T = {context} tokens:", markdown(pd.DataFrame(rows))]
    return "\n\n".join([ranges(table), *parts])


def ranges(table: pd.DataFrame) -> str:
    """Returns in a sentence what the twin and naive top-k attention lose, over kinds and T."""

    def span(values: Any, how: str) -> str:
        return f"{values.min():{how}} to {values.max():{how}}"

    sentences = []
    for name, cells in table.groupby("model", sort=False):
        if name != "dense":
            is_speech = cells["text"] == SPEECHES
            said = f"`{name}`: KL {span(cells.loc[~is_speech, 'kl'], '.3f')} nats"
            if any(is_speech):
                said += f", on the speeches {span(cells.loc[is_speech, 'kl'], '.3f')}"
            if any(cells["density"].lt(1)):
                said += f", with {span(cells['density'], '.1%')} of attention edges open"
            sentences.append(said)
    return "Over the kinds of held-out text and both contexts, " + "; ".join(sentences) + "."


def behaviour_rows(folder: Path) -> str:
    """Returns how well each model does each behaviour, and what the twin keeps."""
    table = pd.read_csv(folder / "behaviours.csv")
    rows = []
    for task, models in table.groupby("task", sort=False):
        by_name = models.set_index("model")
        row: dict[str, Any] = {"behaviour": f"`{task}`", "prompts": by_name["n_prompts"].max()}
        row["metric"] = f"`{by_name['metric'].iloc[0]}`"
        for name, values in by_name.to_dict("index").items():
            row[str(name)] = with_error(values, "margin") if values["does"] else "not done"
        for name in by_name.index.drop("dense"):
            row[f"{name} keeps"] = with_error(by_name.loc[name], "kept", how=".0%")
        for what, column in (("right > wrong", "right_beats_wrong"), ("top token", "top")):
            row[what] = ", ".join(f"{share:.0%}" for share in by_name[column])
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def circuit_rows(folder: Path) -> str:
    """Returns how big the circuits of the pair are, by intervention and by attribution."""
    both = ("dense", "sparse")
    table = rows_of(pd.read_csv(folder / "circuits.csv"))
    rows = [
        {
            "behaviour": f"`{row['task']}`",
            "components": UNITS[row["granularity"]],
            **{side: sized(row[side]) for side in both},
            "dense / sparse [95 %]": with_interval(row),
            "by attribution": ", ".join(sized(row[f"attribution_{side}"]) for side in both),
            "dense / sparse by attribution": f"{row['attribution_ratio']:.2f}",
            "faithfulness": ", ".join(f"{row[f'faithfulness_{side}']:.2f}" for side in both),
            "prompts": row["prompts"],
        }
        for row in table
    ]
    return f"{clear_differences(table)}\n\n{markdown(pd.DataFrame(rows))}"


def pruned_rows(folder: Path) -> str:
    """Returns how big the pruned circuits of the pair and of the control are."""
    both = ("dense", "sparse")
    table = rows_of(pd.read_csv(folder / "pruned.csv"))
    others = pd.read_csv(folder / "pruned_others.csv")
    of_control = others[others["model"] == "control"].set_index(["task", "granularity"])
    rows = []
    for row in table:
        control = of_control.loc[(row["task"], row["granularity"])]
        rows.append(
            {
                "behaviour": f"`{row['task']}`",
                "components": UNITS[row["granularity"]],
                **{side: sized(row[side]) for side in both},
                "control": "-" if pd.isna(control["size"]) else sized(control["size"]),
                "dense / sparse [95 %]": with_interval(row),
                "dense / control [95 %]": with_interval(control),
                "before pruning": ", ".join(sized(row[f"prefix_{side}"]) for side in both),
                "ratio before [95 %]": with_interval(
                    {name: row[f"prefix_{name}"] for name in ("ratio", "ratio_low", "ratio_high")}
                ),
                "faithfulness": ", ".join(f"{row[f'faithfulness_{side}']:.2f}" for side in both),
                "minimal": {True: "yes", False: "not all tried"}[bool(row["minimal"])],
            }
        )
    return f"{clear_differences(table)}\n\n{markdown(pd.DataFrame(rows))}"


def head_rows(folder: Path) -> str:
    """Returns in how many heads 80 % of the attribution of single prompts lies."""
    return markdown(heads_of_prompts(pd.read_csv(folder / "heads.csv")))


def clear_differences(rows: list[Any]) -> str:
    """Returns of which rows of a summary the interval of the ratio leaves out 1."""
    fewer = [row for row in rows if row["ratio_low"] > 1]
    more = [row for row in rows if row["ratio_high"] < 1]
    return f"Clearly fewer in the twin: {_named(fewer)}. Clearly more: {_named(more)}."


def _named(rows: list[Any]) -> str:
    return ", ".join(f"{UNITS[row['granularity']]} of `{row['task']}`" for row in rows) or "none"


BLOCKS: dict[str, Callable[[Path], str]] = {
    "sources": sources,
    "runs": runs,
    "text": text,
    "behaviours": behaviour_rows,
    "circuits": circuit_rows,
    "pruned": pruned_rows,
    "heads": head_rows,
}


def with_error(row: Any, name: str, *, sign: str = "", how: str = ".3f") -> str:
    """Returns "1.234 ± 0.005"."""
    if pd.isna(row[name]):
        return "-"
    return f"{row[name]:{sign}{how}} ± {row[f'{name}_error']:{how}}"


def rows_of(frame: pd.DataFrame) -> list[Any]:
    """Returns the rows of a frame."""
    return [row for _, row in frame.iterrows()]


def main() -> None:
    """Reads the command line and fills the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--docs", type=Path, required=True, help="folder of the docs")
    fill_page(parser.parse_args().docs)


if __name__ == "__main__":
    main()
