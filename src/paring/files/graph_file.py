"""What a file holds of a network in graph form, and the way back: no code, only which units stay and an example's shapes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.analysis.alone import alone
from paring.analysis.capture import CaptureError, untouched_random
from paring.core.file_error import FileError
from paring.core.nested import Shape, allowed, as_inputs, as_tensors, told, understood, within
from paring.removal.graph_form import Captures, GraphFormError, Keeps, graph_form
from paring.removal.graph_net import GraphNet, Recipe


def written(recipe: Recipe, tensor_bytes: int) -> dict[str, Any]:
    """A recipe as JSON: per name how many units there are and which go, and the example.

    tensor_bytes: of the tensors that are written beside it. Raises `FileError` when the example cannot be written, or is
    larger than a reader accepts.
    """
    most = allowed(tensor_bytes)
    example = within(recipe.example, most)
    needed = sum(leaf.nbytes for leaf in pytree.tree_leaves(example) if isinstance(leaf, Shape))
    if needed > most:
        raise FileError(
            f"the example takes {needed:,} bytes, and a file whose tensors take {tensor_bytes:,} may ask for {most:,}; "
            "compact the network with a smaller example"
        )
    gone = {name: [len(mask), (~mask).nonzero().flatten().tolist()] for name, mask in recipe.masks.items()}
    return {"gone": gone, "example": told(example), "free": list(recipe.sizes)}


@alone()
def captures_of(net: nn.Module, graph: dict[str, Any], stored: dict[str, Tensor], path: object) -> Captures:
    """The factory's network, captured in both modes, before it takes the tensors of the file (but of their type)."""
    for name, parameter in net.named_parameters():
        if name in stored and parameter.is_floating_point() and stored[name].is_floating_point():
            net.to(stored[name].dtype)
            break
    captures = Captures(net, as_inputs(as_tensors(understood(graph["example"]))), graph["free"])
    for mode in (net.training, not net.training):
        try:
            captures.of(mode, captures.dtype)
        except (CaptureError, GraphFormError) as error:
            if mode == net.training:
                raise FileError(f"{path} holds a graph, but {type(net).__name__} gives none: {error}") from error
    return captures


@alone()
def graph_of(net: nn.Module, captures: Captures, graph: dict[str, Any], path: object) -> GraphNet:
    """The graph form with the tensors that `net` holds by now. Raises `FileError` when the two do not fit."""
    units = {name: len(ids) for name, ids in captures.of(net.training, captures.dtype)[1].names.items()}
    said = {name: count for name, (count, _) in graph["gone"].items()}
    if said != units:  # before anything is made of these numbers
        name = min(said.items() ^ units.items())[0]
        raise FileError(
            f"{path} holds another architecture than {type(net).__name__}: '{name}' has {said.get(name, 'no')} units in the file, "
            f"{units.get(name, 'none')} in the factory. Pass the factory it was saved from."
        )
    masks: dict[str, Tensor] = {}
    for name, (count, gone) in graph["gone"].items():
        masks[name] = torch.ones(count, dtype=torch.bool)
        masks[name][gone] = False
    try:
        made = graph_form(net, captures, Keeps(masks))[0]
        with torch.no_grad(), untouched_random():
            captures.example.call(copy.deepcopy(made))
    except (GraphFormError, RuntimeError, ValueError, IndexError) as error:
        raise FileError(
            f"{path} holds another architecture than {type(net).__name__}: its graph cannot be made ({error}). "
            "Pass the factory it was saved from."
        ) from error
    return made
