"""HookedTransformer weights back into Hugging Face weights, for any architecture.

TransformerLens knows only the way in: for each architecture a function that turns a Hugging Face
model into HookedTransformer tensors. Most of these functions only cut, transpose and rearrange.
Such a function can be read by watching it work: give it a Hugging Face model in which every
element of every parameter holds its own number, and the tensors that come out say where each
element went. Saving then sends the trained values back the same way.

What the function makes up itself (the zero biases of Llama, GPT-2's zero `unembed.b_U`) has no
place in the Hugging Face model. These parameters are *frozen*: training must leave them alone.
A function that computes (Gemma adds 1 to its norms and scales its embedding) is no
rearrangement; the numbers show it, and it is refused.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import get_pretrained_state_dict
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

# Element number n is written as _FIRST_ID + 3 n in float64, which holds it exactly. The size keeps
# made-up constants apart (they are small), the step of 3 makes any sum or factor miss the numbers.
_FIRST_ID = 2**40
_ID_STEP = 3


@dataclass(frozen=True)
class Rearrangement:
    """Where each element of a Hugging Face model lies in its HookedTransformer.

    Attributes:
        shapes: Shapes of the Hugging Face parameters, embeddings untied, in their own order; laid
            end to end they number all elements.
        places: For each HookedTransformer parameter the numbers of its elements.
        constants: The HookedTransformer parameters that hold nothing of the Hugging Face model,
            with the values they must keep.
    """

    shapes: dict[str, torch.Size]
    places: dict[str, Int[Tensor, "*shape"]]
    constants: dict[str, Tensor]


def learn_rearrangement(model: HookedTransformer, config: PretrainedConfig) -> Rearrangement:
    """Returns how the weights of `config`'s architecture are laid out in `model`.

    Raises:
        ValueError: TransformerLens computes with the weights, or drops some, so that there is no
            way back.
    """
    numbered = skeleton(config, tied=False)
    shapes = {name: parameter.shape for name, parameter in numbered.named_parameters()}
    n_elements = _number_elements(numbered)
    cfg = copy.copy(model.cfg)
    cfg.dtype, cfg.device = torch.float64, "cpu"
    with torch.no_grad():
        # The name only matters for hub names that need special treatment; "." is none of them.
        converted = get_pretrained_state_dict(os.curdir, cfg, numbered)

    places: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        values = converted.get(name)
        if values is None:
            constants[name] = _default_constant(name, parameter)
        elif values.numel() > 0 and float(values.abs().max()) < _FIRST_ID:
            constants[name] = values
        else:
            places[name] = _element_numbers(values, n_elements, name, config)
    _check_each_once(places, shapes, n_elements, config)
    return Rearrangement(shapes, places, constants)


def to_hf_tensors(model: HookedTransformer, layout: Rearrangement) -> dict[str, Tensor]:
    """Returns the Hugging Face parameters (float32, on the CPU) that hold `model`'s weights.

    Raises:
        ValueError: a parameter that must stay constant was changed.
    """
    parameters = {name: p.detach().float().cpu() for name, p in model.named_parameters()}
    changed = [
        name
        for name, constant in layout.constants.items()
        if not torch.equal(parameters[name], constant.float())
    ]
    if changed:
        raise ValueError(
            f"{len(changed)} parameters have no place in a Hugging Face model and must keep their "
            f"constant values, but were changed: {', '.join(changed[:5])}; leave "
            "frozen_parameters(model) out of training"
        )
    flat = torch.empty(sum(shape.numel() for shape in layout.shapes.values()))
    for name, places in layout.places.items():
        flat[places.flatten()] = parameters[name].flatten()
    parts = flat.split([shape.numel() for shape in layout.shapes.values()])
    return {
        name: part.view(shape)
        for (name, shape), part in zip(layout.shapes.items(), parts, strict=True)
    }


def to_hf_model(
    model: HookedTransformer, config: PretrainedConfig, *, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Returns a Hugging Face model with `model`'s weights, to be saved, not run.

    Embeddings that were tied stay tied as long as training left them equal.
    """
    tensors = to_hf_tensors(model, learn_rearrangement(model, config))
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    untied = _filled(skeleton(config, tied=False), tensors)
    output = untied.get_output_embeddings()
    if _is_tied(config) and output is not None:
        embedding = untied.get_input_embeddings().state_dict()
        if torch.equal(embedding["weight"], output.state_dict()["weight"]):
            tied = _filled(skeleton(config, tied=True), tensors)
            tied.tie_weights()
            untied = tied
    untied.config.dtype = dtype
    return untied


def skeleton(config: PretrainedConfig, *, tied: bool) -> PreTrainedModel:
    """Returns the Hugging Face model of `config` without memory for its weights."""
    config = copy.deepcopy(config)
    config.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _is_tied(config: PretrainedConfig) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def _filled(hf_model: PreTrainedModel, tensors: dict[str, Tensor]) -> PreTrainedModel:
    hf_model.load_state_dict(tensors, strict=False, assign=True)
    return hf_model


def _number_elements(hf_model: PreTrainedModel) -> int:
    first = 0
    for name, parameter in list(hf_model.named_parameters()):
        last = first + parameter.numel()
        numbers = _FIRST_ID + _ID_STEP * torch.arange(first, last, dtype=torch.float64)
        owner, _, leaf = name.rpartition(".")
        setattr(
            hf_model.get_submodule(owner),
            leaf,
            nn.Parameter(numbers.view(parameter.shape), requires_grad=False),
        )
        first = last
    return first


def _default_constant(name: str, parameter: Tensor) -> Tensor:
    """Returns what HookedTransformer itself puts where TransformerLens converts nothing."""
    leaf = name.rpartition(".")[2].lstrip("_")
    if leaf == "b" or leaf.startswith("b_"):
        return torch.zeros(parameter.shape)
    if leaf == "w":
        return torch.ones(parameter.shape)
    raise ValueError(
        f"TransformerLens gives the parameter {name!r} no weights for this architecture; "
        "such a model cannot be saved as a Hugging Face folder"
    )


def _element_numbers(
    values: Tensor, n_elements: int, name: str, config: PretrainedConfig
) -> Int[Tensor, "*shape"]:
    steps = (values.double() - _FIRST_ID) / _ID_STEP
    numbers = steps.round().long()
    is_element = (steps == numbers) & (numbers >= 0) & (numbers < n_elements)
    if not is_element.all():
        raise ValueError(
            f"TransformerLens computes {name!r} from the weights of {_architecture(config)} "
            "instead of rearranging them, so they cannot be written back; models of this "
            "architecture cannot be saved as a Hugging Face folder"
        )
    return numbers


def _check_each_once(
    places: dict[str, Tensor],
    shapes: dict[str, torch.Size],
    n_elements: int,
    config: PretrainedConfig,
) -> None:
    seen = torch.zeros(n_elements, dtype=torch.bool)
    n_places = 0
    for numbers in places.values():
        seen[numbers.flatten()] = True
        n_places += numbers.numel()
    parts = seen.split([shape.numel() for shape in shapes.values()])
    wrong = [name for name, part in zip(shapes, parts, strict=True) if not part.all()]
    if wrong or n_places != n_elements:
        raise ValueError(
            f"TransformerLens does not use every weight of {_architecture(config)} exactly once "
            f"({'unused: ' + ', '.join(wrong[:3]) if wrong else 'some are used twice'}), so they "
            "cannot be written back; this model cannot be saved as a Hugging Face folder"
        )


def _architecture(config: PretrainedConfig) -> str:
    return (config.architectures or [type(config).__name__])[0]
