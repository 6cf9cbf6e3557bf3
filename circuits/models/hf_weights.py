"""A hooked model's weights back into Hugging Face weights, for any architecture.

TransformerLens knows only the way in: for each architecture a function that turns a Hugging Face
model into HookedTransformer tensors, or a TransformerBridge that splits joint matrices. Most of
these only cut, transpose and rearrange. That can be read by watching it done: give it a Hugging
Face model in which every element of every parameter holds its own number, and the tensors that come
out say where each element went. Saving then sends the trained values back the same way.

What the function makes up itself (the zero biases of Llama, GPT-2's zero `unembed.b_U`) has no
place in the Hugging Face model. These parameters are *frozen*: training must leave them alone.
A function that computes (Gemma adds 1 to its norms and scales its embedding) is no
rearrangement; the numbers show it, and it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from circuits.models.hf_files import is_tied, skeleton

# Element number n is written as _FIRST_ID + 3 n in float64, which holds it exactly. The size keeps
# made-up constants apart (they are small), the step of 3 makes any sum or factor miss the numbers.
_FIRST_ID = 2**40
_ID_STEP = 3


@dataclass(frozen=True)
class Rearrangement:
    """Where each element of a Hugging Face model lies in its hooked model.

    Attributes:
        shapes: Shapes of the Hugging Face parameters in their own order; laid end to end they
            number all elements.
        places: For each parameter of the hooked model the numbers of its elements.
        constants: The parameters of the hooked model that hold nothing of the Hugging Face model,
            with the values they must keep.
        tied: Whether input and output embeddings are one parameter.
    """

    shapes: dict[str, torch.Size]
    places: dict[str, Int[Tensor, "*shape"]]
    constants: dict[str, Tensor]
    tied: bool


def learn_rearrangement(
    config: PretrainedConfig,
    parameters: Mapping[str, Tensor] | None,
    convert: Callable[[PreTrainedModel], Mapping[str, Tensor]],
    *,
    tied: bool,
) -> Rearrangement:
    """Returns how the weights of `config`'s architecture are laid out in a hooked model.

    Args:
        config: The Hugging Face config.
        parameters: The parameters of the hooked model; None for all that are converted.
        convert: Turns the Hugging Face model into the hooked model's parameters, by name.
        tied: Whether the hooked model holds tied word embeddings as one parameter.

    Raises:
        ValueError: TransformerLens computes with the weights, or drops some, so that there is no
            way back.
    """
    numbered = skeleton(config, tied=tied)
    shapes = {name: parameter.shape for name, parameter in numbered.named_parameters()}
    n_elements = _number_elements(numbered)
    if tied:
        numbered.tie_weights()
    converted = convert(numbered)
    places: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    for name, parameter in (converted if parameters is None else parameters).items():
        values = converted.get(name)
        if values is None:
            constants[name] = _default_constant(name, parameter)
        elif values.numel() > 0 and float(values.detach().abs().max()) < _FIRST_ID:
            constants[name] = values
        else:
            places[name] = _element_numbers(values.detach(), n_elements, name, config)
    _check_each_once(places, shapes, n_elements, config)
    return Rearrangement(shapes, places, constants, tied)


def to_hf_tensors(parameters: Mapping[str, Tensor], layout: Rearrangement) -> dict[str, Tensor]:
    """Returns the Hugging Face parameters (float32, on the CPU) that hold a model's weights.

    Raises:
        ValueError: a parameter that must stay constant was changed.
    """
    parameters = {name: p.detach().float().cpu() for name, p in parameters.items()}
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
    parameters: Mapping[str, Tensor],
    layout: Rearrangement,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Returns a Hugging Face model with a model's weights, to be saved, not run.

    Embeddings that were tied stay tied as long as training left them equal.

    Raises:
        ValueError: the Hugging Face model keeps numbers that are no parameters, which nobody has.
    """
    tensors = to_hf_tensors(parameters, layout)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    found = _filled(skeleton(config, tied=layout.tied), tensors)
    output = found.get_output_embeddings()
    if is_tied(config) and not layout.tied and output is not None:
        embedding = found.get_input_embeddings().state_dict()
        if torch.equal(embedding["weight"], output.state_dict()["weight"]):
            found = _filled(skeleton(config, tied=True), tensors)
    if found.config.tie_word_embeddings:
        found.tie_weights()
    if lost := [name for name, held in found.state_dict().items() if held.is_meta]:
        raise ValueError(
            f"{type(found).__name__} keeps numbers that are no weights ({', '.join(lost[:2])})"
            ", which TransformerLens does not hand on; this model cannot be saved as a Hugging "
            "Face folder"
        )
    found.config.dtype = dtype
    return found


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
