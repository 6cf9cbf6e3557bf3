"""A training run as one HTML page, made from what lies in its folder; no model is loaded.

`run_folder` reads the folder, `words` says what came of the run, `charts` turns the log into curves
and `write` makes the page of them, with `training.html.j2`. The run writes it as it goes on
(circuits/sparsify/run.py), and anybody can make it again from run.json, recipe.toml and log.jsonl.
"""

from circuits.sparsify.training_page.write import (
    SUMMARY_FILE,
    TRAINING_PAGE,
    training_html,
    write_training_page,
)

__all__ = ["SUMMARY_FILE", "TRAINING_PAGE", "training_html", "write_training_page"]
