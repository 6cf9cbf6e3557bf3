import pytest
import torch

from circuits.discovery.search import (
    candidate_sizes,
    crossings,
    curve_sizes,
    find_smallest,
    trial_sizes,
)


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


def plain_crossings(faithfulness, sizes, target):
    """The referee: for each group, the trial from which all are faithful, and the first that is."""
    kept_from, first = [], []
    for group in range(sizes.shape[1]):
        whole = sizes[-1][group]
        good = [
            bool(value >= target) or bool(size == whole)
            for value, size in zip(faithfulness[:, group], sizes[:, group], strict=True)
        ]
        kept_from.append(next(trial for trial in range(len(good)) if all(good[trial:])))
        first.append(next(trial for trial in range(len(good)) if good[trial]))
    return kept_from, first


def wild_curve(n, generator):
    """A curve from 0 to 1 that falls about as often as it rises, and passes 0.9 many times."""
    steps = torch.randn(n + 1, generator=generator, dtype=torch.float64)
    curve = torch.linspace(0, 1, n + 1, dtype=torch.float64) + 0.05 * steps.cumsum(0) / n**0.5
    curve += 0.15 * torch.randn(n + 1, generator=generator, dtype=torch.float64)
    curve[0], curve[-1] = 0, 1
    return curve


@pytest.mark.parametrize("seed", range(20))
def test_a_plain_loop_finds_the_same_crossings(seed):
    generator = torch.Generator().manual_seed(seed)
    widths = torch.randint(1, 30, (3,), generator=generator)
    sizes = trial_sizes(widths)
    faithfulness = torch.rand(sizes.shape, generator=generator) * 1.2
    kept_from, first = crossings(faithfulness, sizes, 0.9)
    assert (kept_from.tolist(), first.tolist()) == plain_crossings(faithfulness, sizes, 0.9)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], (0, 0)),
        ([0.0, 0.0, 0.0, 0.0], (3, 3)),
        ([0.0, 0.95, 0.5, 1.0], (3, 1)),
        ([0.9, 0.89, 0.9, 1.0], (2, 0)),
        ([0.0, 0.95, 0.95, 0.899], (1, 1)),
    ],
    ids=["never fails", "only everything", "falls back", "at the target", "rounding at the end"],
)
def test_crossings_by_hand(column, expected):
    sizes = torch.tensor([[0], [1], [2], [3]])
    kept_from, first = crossings(torch.tensor(column, dtype=torch.float64)[:, None], sizes, 0.9)
    assert (int(kept_from), int(first)) == expected


@pytest.mark.parametrize("seed", range(8))
def test_on_wild_curves_every_larger_size_tried_reaches_the_target(seed):
    generator = torch.Generator().manual_seed(seed)
    curves = [wild_curve(n, generator) for n in (400, 7, 90)]
    found, _ = search_curves(curves)
    for group, curve in enumerate(curves):
        tried = sorted(set(found.sizes[:, group].tolist()))
        chosen = int(found.chosen[group])
        assert all(curve[size] >= 0.9 for size in tried if size >= chosen)
        assert chosen == 0 or curve[chosen - 1] < 0.9
        assert int(found.first[group]) == min(size for size in tried if curve[size] >= 0.9)


def test_a_curve_that_falls_back_is_not_left_at_its_first_crossing():
    curve = torch.zeros(601)
    curve[433:438] = 0.91
    curve[473:] = 0.95
    found, _ = search_curves([curve])
    assert found.chosen.tolist() == [473]


@pytest.mark.parametrize("n", [0, 1, 7, 10, 11, 48, 3000])
def test_candidates_are_every_small_size_and_then_a_tenth_apart(n):
    sizes = candidate_sizes(n)
    assert sizes[: min(n, 10) + 1] == list(range(min(n, 10) + 1))
    assert sizes[-1] == n
    assert all(a < b <= max(a + 1, 1.1 * a) for a, b in zip(sizes, sizes[1:], strict=False))


def test_candidates_of_a_shorter_group_end_in_everything():
    assert trial_sizes(torch.tensor([5, 2])).T.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 2, 2]]


@pytest.mark.parametrize("n", [1, 7, 100, 5000])
@pytest.mark.parametrize("power", [0.1, 1.3, 5.0])
def test_on_a_rising_curve_it_finds_what_a_linear_scan_finds(n, power):
    curve = torch.linspace(0, 1, n + 1, dtype=torch.float64) ** power
    found, trials = search_curves([curve])
    assert found.chosen.tolist() == [linear_scan(curve)]
    assert len(trials) <= len(candidate_sizes(n)) + 10


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


def test_the_curve_runs_from_nothing_to_everything():
    grid = curve_sizes(torch.tensor([1000, 3]))
    assert grid[0].tolist() == [0, 0]
    assert grid[-1].tolist() == [1000, 3]
    assert (grid.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("target", [0.0, 1.2])
def test_an_impossible_target_is_refused(target):
    with pytest.raises(ValueError, match="the target must be above 0 and at most 1"):
        search_curves([torch.ones(3)], target=target)
