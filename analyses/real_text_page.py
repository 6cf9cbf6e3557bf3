"""What docs/results.md says of the models of real text that analyses/real_text.py makes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from results_tables import controls, markdown, sizes

GPT2_HEADS = 144


def section(tables: Path) -> list[str]:
    """Returns the section, if these models were made."""
    table = tables / "real_text.csv"
    if not table.is_file():
        return []
    pair = {
        name: pd.read_csv(tables / f"real_text_{name}.csv")
        for name in ("summary", "others", "models")
    }
    run = pd.read_csv(tables / "real_text_run.csv")
    return ["## A language model of real text", real_text(pd.read_csv(table), run, pair)]


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
