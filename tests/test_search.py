import pytest
import torch

from circuits.search import find_smallest, size_grid


def search_curves(curves, target=0.9, prompts_per_group=3):
    """Searches groups whose faithfulness at size k is `curves[group][k]`, each prompt with noise
    that cancels within its group."""
    groups = torch.arange(len(curves)).repeat_interleave(prompts_per_group)
    noise = torch.linspace(-1, 1, prompts_per_group).repeat(len(curves))
    trials = []

    def evaluate(sizes):
        trials.append(sizes)
        means = torch.stack([curve[size] for curve, size in zip(curves, sizes, strict=True)])
        return 2 + 4 * means[groups] + noise

    found = find_smallest(
        evaluate,
        n_components=torch.tensor([len(curve) - 1 for curve in curves]),
        groups=groups,
        full=torch.full((len(groups),), 6.0),
        empty=torch.full((len(groups),), 2.0),
        target=target,
    )
    return found, trials


def linear_scan(curve, target=0.9):
    return next(size for size, value in enumerate(curve) if value >= target)


@pytest.mark.parametrize("n", [1, 7, 100, 5000])
@pytest.mark.parametrize("power", [0.1, 1.3, 5.0])
def test_on_a_rising_curve_it_finds_what_a_linear_scan_finds(n, power):
    curve = torch.linspace(0, 1, n + 1, dtype=torch.float64) ** power
    found, trials = search_curves([curve])
    assert found.chosen.tolist() == [linear_scan(curve)]
    assert len(trials) < 20 + 15


def test_groups_are_searched_side_by_side():
    curves = [torch.linspace(0, 1, 50) ** 0.5, torch.linspace(0, 1, 301) ** 3, torch.ones(20)]
    found, _ = search_curves(curves)
    assert found.chosen.tolist() == [linear_scan(curve) for curve in curves]


def test_the_chosen_size_reaches_the_target_and_one_less_does_not():
    curve = torch.linspace(0, 1, 401) + 0.2 * torch.sin(torch.linspace(0, 20, 401))
    curve[-1] = 1.0
    found, _ = search_curves([curve])
    by_size = dict(
        zip(found.sizes[:, 0].tolist(), found.faithfulness_of_groups()[:, 0], strict=True)
    )
    size = int(found.chosen[0])
    assert by_size[size] >= 0.9 > by_size[size - 1]


def test_nothing_is_enough_where_nothing_does_it_all():
    found, _ = search_curves([torch.ones(10)])
    assert found.chosen.tolist() == [0]


def test_everything_is_needed_where_the_last_component_does_it_all():
    curve = torch.zeros(30)
    curve[-1] = 1.0
    found, _ = search_curves([curve])
    assert found.chosen.tolist() == [29]


def test_values_are_those_of_the_size_asked_for():
    curve = torch.linspace(0, 1, 101)
    found, _ = search_curves([curve])
    value = found.values_at(found.chosen).mean()
    torch.testing.assert_close(value, 2 + 4 * curve[found.chosen[0]].double())


def test_the_grid_runs_from_nothing_to_everything():
    grid = size_grid(torch.tensor([1000, 3]))
    assert grid[0].tolist() == [0, 0]
    assert grid[-1].tolist() == [1000, 3]
    assert (grid.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("target", [0.0, 1.2])
def test_an_impossible_target_is_refused(target):
    with pytest.raises(ValueError, match="the target must be above 0 and at most 1"):
        search_curves([torch.ones(3)], target=target)
