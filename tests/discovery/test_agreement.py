import pytest
import torch

from circuits.discovery.agreement import agreement_of, auroc


def test_precision_and_recall_of_names():
    found = agreement_of(["a", "b", "c", "d"], {"a", "b", "x"})
    assert found.precision == 0.5
    assert found.recall == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))


def test_a_perfect_and_an_empty_circuit():
    assert agreement_of(["a"], ["a"]).f1 == 1
    nothing = agreement_of([], ["a"])
    assert (nothing.precision, nothing.recall, nothing.f1) == (1, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_auroc_counts_pairs_in_the_right_order(seed):
    torch.manual_seed(seed)
    scores = torch.randint(-4, 5, (40,)).float()  # many ties
    known = torch.rand(40) < 0.3
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[known].abs().tolist()
        for b in scores[~known].abs().tolist()
    ]
    assert auroc(scores, known) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_of_a_perfect_and_of_an_empty_ranking():
    known = torch.tensor([True, False, True, False])
    assert auroc(torch.tensor([-3.0, 1.0, 2.0, 0.0]), known) == 1
    assert auroc(torch.zeros(4), known) == 0.5


@pytest.mark.parametrize(
    ("scores", "known", "message"),
    [
        (torch.ones(2), torch.tensor([True, True]), "all or none"),
        (torch.ones(2), torch.tensor([False, False]), "all or none"),
        (torch.ones(3), torch.tensor([True, False]), "one for each component"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([True, False]), "NaN"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, known, message):
    with pytest.raises(ValueError, match=message):
        auroc(scores, known)


def test_nothing_known_is_refused():
    with pytest.raises(ValueError, match="no components are known"):
        agreement_of(["a"], [])
