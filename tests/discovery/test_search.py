import pytest
import torch

from circuits.discovery.search import (
    candidate_sizes,
    curve_sizes,
    find_smallest,
    kept_from,
    trial_sizes,
)


def search_curves(curves, target=0.9, prompts_per_group=3, **options):
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
        **options,
    )
    return found, trials


def linear_scan(curve, target=0.9):
    return next(size for size, value in enumerate(curve) if value >= target)


def plain_kept_from(faithfulness, sizes, target):
    """The referee: for each group, the trial from which all are faithful."""
    found = []
    for group in range(sizes.shape[1]):
        whole = sizes[-1][group]
        good = [
            bool(value >= target) or bool(size == whole)
            for value, size in zip(faithfulness[:, group], sizes[:, group], strict=True)
        ]
        found.append(next(trial for trial in range(len(good)) if all(good[trial:])))
    return found


def wild_curve(n, generator):
    """A curve from 0 to 1 that falls about as often as it rises, and passes 0.9 many times."""
    steps = torch.randn(n + 1, generator=generator, dtype=torch.float64)
    curve = torch.linspace(0, 1, n + 1, dtype=torch.float64) + 0.05 * steps.cumsum(0) / n**0.5
    curve += 0.15 * torch.randn(n + 1, generator=generator, dtype=torch.float64)
    curve[0], curve[-1] = 0, 1
    return curve


@pytest.mark.parametrize("seed", range(20))
def test_a_plain_loop_finds_the_same_trials(seed):
    generator = torch.Generator().manual_seed(seed)
    widths = torch.randint(1, 30, (3,), generator=generator)
    sizes = trial_sizes(widths)
    faithfulness = torch.rand(sizes.shape, generator=generator) * 1.2
    assert kept_from(faithfulness, sizes, 0.9).tolist() == plain_kept_from(faithfulness, sizes, 0.9)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0),
        ([0.0, 0.0, 0.0, 0.0], 3),
        ([0.0, 0.95, 0.5, 1.0], 3),
        ([0.9, 0.89, 0.9, 1.0], 2),
        ([0.0, 0.95, 0.95, 0.899], 1),
    ],
    ids=["never fails", "only everything", "falls back", "at the target", "rounding at the end"],
)
def test_the_trial_from_which_the_target_is_kept_by_hand(column, expected):
    sizes = torch.tensor([[0], [1], [2], [3]])
    found = kept_from(torch.tensor(column, dtype=torch.float64)[:, None], sizes, 0.9)
    assert int(found) == expected


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
        # Whatever larger size is on the list was tried.
        assert {size for size in candidate_sizes(len(curve) - 1) if size > chosen} <= set(tried)


def test_a_curve_that_falls_back_is_not_left_at_its_first_crossing():
    curve = torch.zeros(601)
    curve[433:438] = 0.91
    curve[473:] = 0.95
    found, _ = search_curves([curve])
    assert found.chosen.tolist() == [473]


@pytest.mark.parametrize("start", [0, 3, 60, 200, 1000])
@pytest.mark.parametrize("power", [0.3, 2.0])
def test_a_search_that_begins_elsewhere_ends_at_the_same_size(start, power):
    curves = [torch.linspace(0, 1, n + 1, dtype=torch.float64) ** power for n in (900, 12)]
    (whole, _), (near, _) = search_curves(curves), search_curves(curves, start=start)
    assert near.chosen.tolist() == whole.chosen.tolist()
    torch.testing.assert_close(near.values_at(near.chosen), whole.values_at(whole.chosen))


def test_sizes_above_the_start_are_not_looked_at():
    curve = torch.linspace(0, 1.9, 901, dtype=torch.float64).clamp(max=1)
    curve[candidate_sizes(900)[-3]] = 0
    assert search_curves([curve])[0].chosen.item() > 700
    found, trials = search_curves([curve], start=600)
    assert found.chosen.item() == linear_scan(curve)
    assert max(size.item() for size in trials) < 700


def test_a_short_list_beside_a_long_one_takes_no_trials_of_its_own():
    long, short = torch.linspace(0, 1, 901), torch.linspace(0, 1, 13)
    (_, alone), (_, both) = search_curves([long]), search_curves([long, short])
    assert len(both) <= len(alone) + 1


@pytest.mark.parametrize("seed", range(5))
def test_trials_go_on_until_resamples_miss_the_target_too(seed):
    """Their sizes are those that all trials, from nothing to everything, would give."""
    generator = torch.Generator().manual_seed(seed)
    curves = [wild_curve(n, generator) for n in (400, 7, 90)]
    weights = torch.randint(0, 3, (20, 9), generator=generator).double()
    weights[0, 3:6] = 0  # a group that was not drawn
    found, _ = search_curves(curves, weights=weights)
    grid = trial_sizes(torch.tensor([400, 7, 90]))
    every = torch.cat([grid, found.sizes]).sort(dim=0).values
    noise = torch.linspace(-1, 1, 3).double()
    for row in weights:
        for group, curve in enumerate(curves):
            weight = row[3 * group : 3 * group + 3]
            if weight.sum() == 0:
                continue
            off = float((weight * noise).sum() / weight.sum()) / 4

            def smallest_kept(tried, curve=curve, off=off):
                """Counted down from everything by hand; `off` is what the draw adds to F."""
                kept = len(curve) - 1
                for size in sorted(set(tried), reverse=True)[1:]:
                    if curve[size] + off < 0.9:
                        return kept
                    kept = size
                return kept

            told = smallest_kept(found.sizes[:, group].tolist())
            assert told == smallest_kept(every[:, group].tolist())


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
