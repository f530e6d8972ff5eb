"""What a file holds of a network in graph form, and the way back: no code, only which units stay and an example's shapes."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paring.graph.capture import CaptureError, as_inputs, untouched_random
from paring.graph.graph_form import Captures, GraphFormError, Keeps, graph_form
from paring.graph.graph_net import GraphNet, Recipe


class FileError(ValueError):
    """A file cannot be read as the network asked for; the message says what, why and what to do."""


def written(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON: per name how many units there are and which go. Raises `FileError` for odd arguments."""
    odd = [v for v in recipe.example if not isinstance(v, list | int | float | str | bool | None)]
    if odd:
        raise FileError(f"the example had an argument {odd[0]!r}, which a file cannot hold; use tensors and numbers")
    gone = {name: [len(mask), (~mask).nonzero().flatten().tolist()] for name, mask in recipe.masks.items()}
    return {"gone": gone, "example": list(recipe.example), "inputs": recipe.inputs}


def captures_of(net: nn.Module, manifest: dict[str, Any], path: str | os.PathLike[str]) -> Captures:
    """The factory's network, captured in both modes, before it takes the tensors of the file (but of their type)."""
    graph, tensors = manifest["graph"], manifest["tensors"]
    for name, parameter in net.named_parameters():
        if name in tensors and parameter.is_floating_point():
            net.to(getattr(torch, tensors[name][0]))
            break
    leaves: list[object] = []
    for leaf in graph["example"]:
        leaves.append(torch.zeros(leaf[0], dtype=getattr(torch, leaf[1])) if isinstance(leaf, list) else leaf)
    example: tuple[object, ...] = tuple(pytree.tree_unflatten(leaves, pytree.treespec_loads(graph["inputs"])))
    captures = Captures(net, example)
    for mode in (net.training, not net.training):
        try:
            captures.of(mode, captures.dtype)
        except (CaptureError, GraphFormError) as error:
            if mode == net.training:
                raise FileError(f"{path} holds a graph, but {type(net).__name__} gives none: {error}") from error
    return captures


def graph_of(net: nn.Module, captures: Captures, graph: dict[str, Any], path: str | os.PathLike[str]) -> GraphNet:
    """The graph form with the tensors that `net` holds by now. Raises `FileError` when the two do not fit."""
    masks: dict[str, Tensor] = {}
    for name, (count, gone) in graph["gone"].items():
        masks[name] = torch.ones(count, dtype=torch.bool)
        masks[name][gone] = False
    try:
        made = graph_form(net, captures, Keeps(masks))[0]
        with torch.no_grad(), untouched_random():
            copy.deepcopy(made)(*as_inputs(captures.example))
    except (GraphFormError, RuntimeError, ValueError, IndexError) as error:
        raise FileError(
            f"{path} holds another architecture than {type(net).__name__}: its graph cannot be made ({error}). "
            "Pass the factory it was saved from."
        ) from error
    return made
