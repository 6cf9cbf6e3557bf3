from typing import Any

import pytest
import torch

from circuits.models.backend import component_hooks
from tests.helpers import make_tiny_model, needs_hooked_transformer

pytestmark = needs_hooked_transformer  # A TransformerBridge's norms are left as they are.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["LN", "LNPre", "RMS", "RMSPre"])
def test_a_norm_at_once_is_the_norm_of_transformer_lens(kind, dtype):
    model = make_tiny_model(normalization_type=kind, dtype=dtype)
    norm = model.blocks[1].ln1
    for weight in norm.parameters():
        torch.nn.init.normal_(weight.data, mean=1.0)
    inputs = torch.randn(2, 5, 3, model.cfg.d_model).to(dtype)
    made = inputs.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)  # as an edge run makes them
    expected = norm(inputs), norm(inputs[:, :, 0])
    with component_hooks(model):
        assert "forward" in vars(norm)  # not compared with itself
        found = norm(made), norm(made[:, :, 0])
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 3e-2}[dtype]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_a_norm_with_a_hook_stays_as_it_is_and_all_are_put_back():
    model: Any = make_tiny_model()
    seen = []
    model.blocks[0].ln1.hook_scale.add_hook(lambda act, hook: seen.append(act))
    norms = [block.ln1 for block in model.blocks]
    with pytest.raises(KeyError), component_hooks(model):
        assert ["forward" in vars(norm) for norm in norms] == [False, True]
        norms[0](torch.randn(1, 2, model.cfg.d_model))
        raise KeyError
    assert len(seen) == 1
    assert not any("forward" in vars(norm) for norm in norms)
