"""Seeds: small ones give the numbers that they always gave, large ones have room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuits.cli import main
from circuits.results.discovery import DiscoverConfig
from circuits.seeds import MAX_SEED, check_seed, sub_seed
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.low_rank import add_low_rank
from circuits.sparsify.run import Run
from tests.helpers import make_tiny_model

LARGE = (2**24, 20251124, 2**53 + 1, MAX_SEED)


def noise_seed(seed: int, step: int, part: int) -> int:
    run = object.__new__(Run)
    run.config, run.step = TrainConfig(seed=seed), step
    return run._noise_seed(part)


@pytest.mark.parametrize("seed", [0, 1, 17, 2**24 - 1])
def test_a_small_seed_gives_the_noise_that_it_always_gave(seed: int) -> None:
    assert noise_seed(seed, 2500, 3) == seed * 2**40 + 2500 * 2**12 + 3


@pytest.mark.parametrize("seed", LARGE)
def test_a_large_seed_gives_noise_of_its_own_to_every_step_and_part(seed: int) -> None:
    found = {noise_seed(seed, step, part) for step in range(20) for part in range(5)}
    assert len(found) == 100
    for number in found:
        torch.manual_seed(number)
    assert noise_seed(seed, 0, 0) not in {noise_seed(other, 0, 0) for other in {*LARGE} - {seed}}
    assert noise_seed(seed, 7, 1) == noise_seed(seed, 7, 1)


def test_a_large_seed_makes_low_rank_updates_of_its_own() -> None:
    firsts = []
    for seed in (3, *LARGE):
        updates = add_low_rank(make_tiny_model(), 2, seed=seed)
        firsts.append(next(held for name, held in updates.items() if name.endswith("down")))
    assert all(not torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])


def test_the_name_counts_only_where_the_numbers_have_no_room() -> None:
    assert sub_seed(2**64 - 1, "a") == 2**64 - 1
    assert sub_seed(2**64, "a") == sub_seed(2**70, "a") != sub_seed(2**64, "b")
    assert 0 <= sub_seed(2**64, "a") <= MAX_SEED


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 2**80, True])
def test_what_is_not_a_seed_is_refused_with_the_range(seed: int) -> None:
    message = rf"seed is {seed}; it must be a whole number from 0 to {MAX_SEED} \(2\*\*63 - 1\)"
    for refuse in (
        check_seed,
        lambda seed: TrainConfig(seed=seed),
        lambda s: DiscoverConfig(seed=s),
    ):
        with pytest.raises(ValueError, match=message):
            refuse(seed)


@pytest.mark.parametrize("command", ["train", "compare", "discover", "robustness"])
@pytest.mark.parametrize("seed", ["-1", str(2**63), str(2**64)])
def test_a_command_names_the_option_and_the_range(
    command: str, seed: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([command, "--seed", seed, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"seed is {seed}; it must be a whole number from 0 to {MAX_SEED}" in said
    assert not list(tmp_path.iterdir())
