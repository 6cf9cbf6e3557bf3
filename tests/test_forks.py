"""Calls in forks: results, steps, warnings and errors come back, and no fork outlives its use."""

import os
import signal
import time
import warnings
from functools import partial

import pytest
import torch

from circuits.forks import run_in_forks


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def sleeping(folder, _on_step):
    """A call that says who it is and does not end."""
    (folder / f"{os.getpid()}").touch()
    time.sleep(60)


def pids(folder):
    return [int(path.name) for path in folder.iterdir()]


def test_results_are_in_order_though_the_last_call_ends_first(tmp_path):
    steps, ended = [], []

    def call(number, on_step):
        # Each but the last waits for the next one's end, so the three must run together.
        if number < 2:
            wait_until((tmp_path / str(number + 1)).exists)
        on_step(f"step of {number}")
        (tmp_path / str(number)).touch()
        return torch.full((3,), float(number)), os.getpid(), torch.get_num_threads()

    results = run_in_forks(
        [partial(call, number) for number in range(3)],
        3,
        on_step=steps.append,
        on_result=lambda number, result: ended.append((number, result[1])),
    )
    assert [tensor.tolist() for tensor, *_ in results] == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert sorted(steps) == ["step of 0", "step of 1", "step of 2"]
    assert sorted(ended) == [(number, pid) for number, (_, pid, _) in enumerate(results)]
    assert len({os.getpid(), *(pid for _, pid, _ in results)}) == 4
    assert {threads for *_, threads in results} == {1}


def test_no_more_than_so_many_run_at_a_time(tmp_path):
    def call(_on_step):
        mine = tmp_path / str(os.getpid())
        mine.touch()
        time.sleep(0.05)
        n = len(list(tmp_path.iterdir()))
        mine.unlink()
        return n

    assert max(run_in_forks([call] * 5, 2)) <= 2


def test_one_process_makes_the_calls_itself():
    assert run_in_forks([lambda _: os.getpid()] * 2, 1) == [os.getpid()] * 2


def test_an_error_is_raised_as_it_was_with_its_place_and_ends_the_others(tmp_path):
    def fails(_on_step):
        wait_until(lambda: pids(tmp_path))
        raise FileNotFoundError("no prompts here")

    with pytest.raises(FileNotFoundError, match=r"^no prompts here$") as raised:
        run_in_forks([partial(sleeping, tmp_path), fails], 2)
    assert "in fails" in str(raised.value.__cause__)
    (other,) = pids(tmp_path)
    assert not is_there(other)


class Awkward(ValueError):
    """An error that can be pickled, but not made again."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def test_an_error_that_cannot_be_handed_over_says_the_same():
    def fails(_on_step):
        raise Awkward("this", "that")

    with pytest.raises(RuntimeError, match=r"^this and that$"):
        run_in_forks([fails] * 2, 2)


def test_a_killed_fork_is_an_error_that_says_so(tmp_path):
    def killed(_on_step):
        wait_until(lambda: pids(tmp_path))
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ChildProcessError, match="one of 2 processes .* killed by signal 9; if mem"):
        run_in_forks([killed, partial(sleeping, tmp_path)], 2)
    assert not any(map(is_there, pids(tmp_path)))


def test_an_interrupt_reaches_the_parent_alone_which_ends_the_forks(tmp_path):
    def call(on_step):
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C reaches every process of the terminal.
        on_step("still there")
        sleeping(tmp_path, on_step)

    def interrupted(what):
        assert what == "still there"
        wait_until(lambda: len(pids(tmp_path)) == 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_forks([call] * 2, 2, on_step=interrupted)
    assert not any(map(is_there, pids(tmp_path)))


def test_forks_end_when_their_parent_is_killed(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parent = os.fork()
    if parent == 0:
        try:
            run_in_forks([partial(sleeping, tmp_path)] * 2, 2)
        finally:
            os._exit(1)
    wait_until(lambda: len(pids(tmp_path)) == 2)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_until(lambda: not any(map(is_there, pids(tmp_path))))


def test_a_warning_of_several_forks_is_given_once():
    def warns(number, _on_step):
        for _ in range(2):
            warnings.warn("slow", UserWarning, stacklevel=1)
        warnings.warn(f"of {number}", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        run_in_forks([partial(warns, number) for number in range(3)], 2)
    assert sorted(str(one.message) for one in given) == ["of 0", "of 1", "of 2", "slow"]
    assert {(one.category, one.filename) for one in given} == {(UserWarning, __file__)}
