import torch

from circuits.metrics import accuracy, beats_wrong, kl_div, last_logits, logit_diff, prob_diff
from circuits.prompts import Prompts

LOGITS = torch.tensor([[1.0, 2.0, 4.0, 0.0], [0.0, 0.0, 0.0, 3.0]])


def prompts(answers, wrong):
    tokens = torch.zeros(2, 3, dtype=torch.long)
    return Prompts(
        tokens, tokens, torch.tensor([3, 2]), torch.tensor(answers), torch.tensor(wrong), ("a", "b")
    )


def test_logit_diff_is_answer_minus_wrong_answer():
    found = logit_diff(LOGITS, prompts([[2], [3]], [[0], [1]]), LOGITS)
    assert found.tolist() == [3.0, 3.0]


def test_logit_diff_takes_means_and_passes_over_the_filler():
    found = logit_diff(LOGITS, prompts([[2, 1], [3, -1]], [[0, -1], [1, 2]]), LOGITS)
    assert found.tolist() == [2.0, 3.0]


def test_prob_diff_sums_probabilities_and_passes_over_the_filler():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]).log()
    found = prob_diff(logits, prompts([[2, 3], [0, -1]], [[0, 1], [1, 2]]), logits)
    torch.testing.assert_close(found, torch.tensor([0.4, -0.25]))


def test_kl_div_is_zero_for_the_clean_logits_and_negative_elsewhere():
    both = prompts([[0], [0]], [[1], [1]])
    torch.testing.assert_close(kl_div(LOGITS + 5, both, LOGITS), torch.zeros(2), atol=1e-6, rtol=0)
    assert (kl_div(LOGITS.flip(0), both, LOGITS) < 0).all()


def test_accuracy_asks_for_the_best_token_of_all():
    assert accuracy(LOGITS, prompts([[2], [1]], [[0], [0]])).tolist() == [True, False]
    assert accuracy(LOGITS, prompts([[0, 2], [3, -1]], [[1], [1]])).tolist() == [True, True]


def test_last_logits_reads_each_prompt_at_its_own_end():
    logits = torch.arange(24.0).view(2, 3, 4)
    found = last_logits(logits, torch.tensor([2, 1]))
    assert torch.equal(found, torch.stack([logits[0, 2], logits[1, 1]]))


def test_right_answers_beat_wrong_ones_by_their_probability_together():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.45, 0.25, 0.2, 0.1]]).log() + 7
    # 0.3 + 0.2 against 0.4; 0.45 against 0.25 + 0.2 + 0.1, though it is above each.
    assert beats_wrong(logits, prompts([[2, 1], [0, -1]], [[3, -1, -1], [1, 2, 3]])).tolist() == [
        True,
        False,
    ]
    assert beats_wrong(logits, prompts([[0], [0]], [[1], [1]])).tolist() == [False, True]
