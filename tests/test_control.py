import pytest
import torch

from circuits.gate import add_gate
from circuits.sparsify.config import TrainConfig
from circuits.sparsify.control import train_on
from circuits.sparsify.corpus import corpus_tokenizer
from circuits.sparsify.data import CorpusStream
from circuits.sparsify.loss import cross_entropy
from circuits.sparsify.train import evaluate_ce
from tests.helpers import make_tiny_model


def corpus_model():
    return make_tiny_model(tokenizer=corpus_tokenizer(context=32))


CONFIG = TrainConfig(steps=4, batch_size=4, learning_rate=1e-2, warm_up=0.0)


@pytest.fixture(scope="module")
def dense():
    return corpus_model()


@pytest.fixture(scope="module")
def stream(dense):
    return CorpusStream(dense.tokenizer, context=dense.cfg.n_ctx)


def test_the_control_learns_and_the_dense_model_stays(dense, stream):
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    tokens = stream.held_out("selection", 8)
    control = train_on(dense, stream, CONFIG, progress=False)
    assert evaluate_ce(control, tokens) < evaluate_ce(dense, tokens) - 0.01
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_one_step_is_the_optimisers(dense, stream):
    config = TrainConfig(steps=1, batch_size=4, learning_rate=1e-2, warm_up=0.0, grad_clip=1e9)
    control = train_on(dense, stream, config, progress=False)
    tokens = stream.batch(0, 4)
    loss = cross_entropy(dense(tokens), tokens)
    name, weight = next((n, p) for n, p in dense.named_parameters() if p.shape == dense.W_E.shape)
    (gradient,) = torch.autograd.grad(loss, weight)
    # AdamW's first step is the learning rate times the gradient's sign, plus decay.
    expected = weight * (1 - 1e-2 * config.weight_decay) - 1e-2 * gradient.sign()
    moved = gradient.abs() > 1e-5
    found = dict(control.named_parameters())[name]
    torch.testing.assert_close(found[moved], expected[moved], atol=1e-4, rtol=1e-3)


def test_frozen_parameters_keep_their_values(dense, stream):
    name, _ = next(iter(dense.named_parameters()))  # The embedding.
    control = train_on(dense, stream, CONFIG, frozen=(name,), progress=False)
    assert torch.equal(control.W_E, dense.W_E)
    assert not torch.equal(control.W_U, dense.W_U)


def test_the_same_recipe_gives_the_same_weights(dense, stream):
    one, other = (train_on(dense, stream, CONFIG, progress=False) for _ in range(2))
    assert torch.equal(one.W_U, other.W_U)


def test_a_gated_model_is_refused(stream):
    with pytest.raises(ValueError, match="a control is made of the dense model"):
        train_on(add_gate(corpus_model()), stream, CONFIG)
