"""How far long work is: lines that a log file can hold, and a bar where there is a terminal."""

import contextlib
import io
import os
import pty
import re

import pytest
from rich.console import Console

from circuits import progress
from circuits.progress import clock, is_live, shown_steps


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def ticking(monkeypatch):
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def told(*, forced=False):
    file = io.StringIO()
    return file, Console(file=file, force_terminal=forced or None, width=40)


@pytest.mark.parametrize("forced", [False, True], ids=["a file", "a file that wants colours"])
def test_a_file_gets_a_plain_line_for_each_thing_begun_with_the_time_that_is_left(ticking, forced):
    file, console = told(forced=forced)
    with shown_steps(8, console=console) as step:
        for what in ("dense ioi: head", "dense ioi: head", "dense ioi: [edge]", "sparse ioi: head"):
            ticking.now += 30
            step(what)
        step.leave_out(2)
        ticking.now += 3600
        step("sparse ioi: edge")
        step.finish()
    assert file.getvalue().splitlines() == [
        "dense ioi: head (12% done, 0:00:30 so far, about 0:03:30 left)",
        "dense ioi: [edge] (38% done, 0:01:30 so far, about 0:02:30 left)",
        "sparse ioi: head (50% done, 0:02:00 so far, about 0:02:00 left)",
        # 5 of 6 steps in 3,720 s
        "sparse ioi: edge (83% done, 1:02:00 so far, about 0:12:24 left)",
    ]


def test_things_under_way_at_a_time_are_told_when_each_begins(ticking):
    file, console = told()
    with shown_steps(8, console=console) as step:
        for what in ("dense ioi: head", "sparse ioi: head", "dense ioi: head", "sparse ioi: edge"):
            ticking.now += 1
            step(what)
    lines = [line.partition(" (")[0] for line in file.getvalue().splitlines()]
    assert lines == ["dense ioi: head", "sparse ioi: head", "sparse ioi: edge"]


def test_what_goes_on_for_long_is_told_again(ticking):
    file, console = told()
    with shown_steps(100, console=console) as step:
        for _ in range(50):
            ticking.now += 4
            step("edge")
    # A line at 4 s, then one whenever a minute has passed.
    assert len(file.getvalue().splitlines()) == 1 + 196 // 60


def test_what_was_done_before_says_nothing_of_the_speed(ticking):
    file, console = told()
    with shown_steps(1000, console=console, done=900) as step:
        assert step.seconds_left is None
        ticking.now += 10
        step.reach(950, "step 950", "CE 1.2")
        step.reach(951, "step 951", after=60)
    assert file.getvalue() == "step 950: CE 1.2 (95% done, 0:00:10 so far, about 0:00:10 left)\n"
    with shown_steps(1000, console=console) as step:
        ticking.now += 10
        step.begin_at(900)
        ticking.now += 5
        step.reach(950, "step 950")
        assert (step.seconds, step.seconds_left) == (5, 5)


def test_steps_count_by_their_cost_and_the_time_left_is_said_once_it_is_known(ticking):
    file, console = told()
    costs = {"scored": 30.0, "edge": 10.0}
    with shown_steps(1000, console=console, work_of_step=lambda what: costs[what]) as step:
        for what, seconds in [("scored", 3), ("edge", 1), ("edge", 70), *[("edge", 1)] * 96]:
            ticking.now += seconds
            step(what)
        assert step.seconds_left is None  # More than was foreseen.
        step.finish()
    lines = file.getvalue().splitlines()
    assert lines[:3] == [
        "scored (3% done, 0:00:03 so far)",
        "edge (4% done, 0:00:04 so far)",
        # 50 of 1,000 in 74 s
        "edge (5% done, 0:01:14 so far, about 0:23:26 left)",
    ]
    assert lines[-1] == "edge (65% done, 0:02:14 so far, about 0:01:12 left)"


def test_work_that_turns_out_to_be_more_is_not_said_to_be_done(ticking):
    file, console = told()
    with shown_steps(2, console=console, work_of_step=lambda _: 1.0) as step:
        for what in ("a: head", "a: mlp", "a: edge"):
            ticking.now += 1
            step(what)
    assert file.getvalue().splitlines()[1:] == [
        "a: mlp (99% done, 0:00:02 so far)",
        "a: edge (99% done, 0:00:03 so far)",
    ]


def test_nothing_is_shown_where_nothing_shall_be(capsys):
    with shown_steps(2, shown=False) as step:
        step("a")
        assert step.remaining == 1
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_with_the_numbers_under_it():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as file:
        console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"})
        assert is_live(console)
        with shown_steps(4, console=console, done=1) as step:
            step.begin_at(2)
            step.reach(3, "step 3 of 4", "CE 1.2345 (tau 1.2), open 2.61%, lambda 3.2")
            step.leave_out(0)
            step.finish()
    shown = b""
    with contextlib.suppress(OSError):  # what a terminal that nobody writes to any more ends with
        while piece := os.read(ours, 100_000):
            shown += piece
    os.close(ours)
    shown = shown.decode()
    assert "\x1b[" in shown
    rows = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "").splitlines()
    last = rows.index("CE 1.2345 (tau 1.2), open 2.61%, lambda 3.2")
    assert last > 0
    assert "so far" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (1e5, "27:46:40")]
)
def test_a_duration_is_read_as_a_clock(seconds, text):
    assert clock(seconds) == text
