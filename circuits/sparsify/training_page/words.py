"""What came of a run, in sentences: whether the bound is kept, and what speaks against it."""

from __future__ import annotations

from typing import Any, NamedTuple

from circuits.numbers import percent
from circuits.progress import clock
from circuits.sparsify.training_page.run_folder import RunFolder


class Alert(NamedTuple):
    """Something to know before all else; `kind` is failure, stop or warning."""

    kind: str
    text: str


def alerts(run: RunFolder) -> list[Alert]:
    """Returns why the run is not a success, and what to be careful about."""
    found = []
    if run.stopped is not None:
        found.append(Alert("stop", f"Stopped after step {run.stopped['step']:,} of "
                                   f"{run.config['steps']:,}: {run.stopped['why']}"))  # fmt: skip
    if run.result is None:
        return found + [Alert("warning", text) for text in run.start.get("notes", ())]
    found += [Alert("failure", text) for text in run.result["failures"]]
    return found + [Alert("warning", text) for text in run.result["warnings"]]


def verdict(run: RunFolder) -> str:
    """Returns what the run came to, or has come to so far, in a sentence."""
    so_far = f"So far, at step {run.step:,} of {run.config['steps']:,}"
    if run.is_control:
        return _of_control(run, so_far)
    if run.result is not None:
        kept = "The bound is kept" if run.result["satisfied"] else "The bound is not kept"
        state = {**run.result, "step": run.result["best_step"]}
        return f"{kept}: {_state(run, state)} of {run.result['steps']:,}."
    if not run.evaluations:
        every = run.config["evaluate_every"]
        return f"{so_far}, the bound was not looked at; that comes every {every:,} steps."
    if run.best is not None:
        return f"{so_far}, the sparsest state that keeps the bound has {_state(run, run.best)}."
    return (
        f"{so_far}, no state has kept the bound; the last has {_state(run, run.evaluations[-1])}."
    )


def _of_control(run: RunFolder, so_far: str) -> str:
    ce = (
        run.result["ce"]
        if run.result
        else next((line["ce"] for line in run.evaluations[::-1]), None)
    )
    when = f"after {run.result['steps']:,} steps" if run.result else so_far[0].lower() + so_far[1:]
    if ce is None:
        return f"A control, trained without a gate; {when}, its cross-entropy was not measured."
    text = f"A control, trained without a gate: {when}, its cross-entropy is {ce:.4f} nats"
    dense_ce = run.dense_ce
    if dense_ce is None:
        return f"{text}."
    side = "below" if ce < dense_ce else "above"
    return f"{text}, {gap(ce, dense_ce)} {side} the dense model's {dense_ce:.4f}."


def _state(run: RunFolder, state: dict[str, Any]) -> str:
    """How far a state is from the bound, and how sparse."""
    value, limit = state[run.bounded], state["epsilon" if run.is_by_kl else "tau"]
    what = "KL(dense || sparse)" if run.is_by_kl else "cross-entropy"
    name = f"epsilon = {limit:g}" if run.is_by_kl else f"tau = {limit:.4f}"
    side = "below" if value <= limit else "above"
    return (
        f"{what} {value:.4f} nats, {gap(value, limit)} {side} {name}, with "
        f"{percent(state['density'])} of attention edges open (T = {run.data['context']}) at step "
        f"{state['step']:,}"
    )


def gap(value: float, limit: float) -> str:
    """Returns how far two numbers are apart; what is not 0 does not read as 0."""
    apart = abs(value - limit)
    return f"{apart:.4f}" if apart == 0 or apart >= 5e-5 else f"{apart:.1g}"


def headline_numbers(run: RunFolder) -> list[tuple[str, str]]:
    """Returns the numbers of the result, or of the latest measurement, each with its name."""
    last = run.log[-1] if run.log else {}
    state = run.result or run.best or (run.evaluations[-1] if run.evaluations else {})
    dense_ce = run.dense_ce
    found = [
        ("dense CE", "" if dense_ce is None else f"{dense_ce:.4f} nats"),
        ("control CE" if run.is_control else "sparse CE",
         f"{state['ce']:.4f} nats" if "ce" in state else ""),
    ]  # fmt: skip
    if run.is_by_kl:
        found.append(("KL(dense || sparse)", f"{state['kl']:.4f} nats" if "kl" in state else ""))
    if not run.is_control:
        bound = "epsilon" if run.is_by_kl else "tau"
        found += [
            (bound, "" if run.limit is None else f"{run.limit:.4f} nats"),
            ("edges open", percent(state["density"]) if "density" in state else ""),
            ("lambda, at last", f"{last['lambda']:.3g}" if "lambda" in last else ""),
        ]
    speeds = sorted(line["tokens_per_second"] for line in run.log if "tokens_per_second" in line)
    if speeds:
        found.append(("tokens a second, median", f"{speeds[len(speeds) // 2]:,.0f}"))
    if run.seconds is not None:
        found.append(("time", clock(run.seconds)))
    return [(name, text) for name, text in found if text]
