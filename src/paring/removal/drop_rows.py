"""Rows of a vocabulary that are not needed: out of the table, and out of the layers that are tied to it or score it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from paring.core import plain_net
from paring.removal.apply import resize
from paring.removal.plan import full_name
from paring.removal.slices import cut

_TABLES = (nn.Embedding, nn.EmbeddingBag)


def drop_rows(
    net: nn.Module, ids: Iterable[int] | Tensor, *, table: str = "", outputs: Sequence[str] = ()
) -> tuple[nn.Module, Tensor]:
    """A copy of the network without some rows of its vocabulary, and where the ids that stay are now.

        small, new = pr.drop_rows(net, unused)
        small(new[ids])                                    # what net(ids) gives, for all ids that stay

    The order of the ids stays. Layers that hold the same parameter (a tied output layer) lose the same rows, and their
    biases too: column `new[i]` of what they give is column i of before. Wherever the network or its parts have a number called
    `vocab_size` that is the old size, in a `config` as well, it becomes the new one.

    Args:
        net: a network; it stays as it is.
        ids: the rows that go, as numbers.
        table: the path of the `nn.Embedding` or `nn.EmbeddingBag`; may be left out where there is one only.
        outputs: paths of linear layers that are not tied to the table, with one unit for each of its rows: these units go.

    Returns:
        the small network, and new (old size,), int64: the id that each old one has now, -1 for those that went.

    Raises:
        ValueError: no such table, or several and none named; ids beyond it, that of its padding, or all there are; a parameter that
            something other than tables and linear layers holds as well; outputs of another size; a network with gates.
    """
    net = plain_net(net, "drop_rows")
    path, module = _table(net, table)
    size = len(module.weight)
    gone = _gone(ids, size, path, module)
    keep = (~gone).nonzero().flatten()
    small = copy.deepcopy(net)
    holders = _holders(small, small.get_submodule(path), path)
    for name in outputs:
        layer = dict(small.named_modules()).get(name)
        if not isinstance(layer, nn.Linear) or layer.out_features != size:
            raise ValueError(
                f"outputs names {name!r}, which is no linear layer with one unit for each of the {size} rows of '{path}'"
            )
        holders.setdefault(name, layer)
    made: dict[int, nn.Parameter] = {}
    for holder in holders.values():
        for leaf in ("weight", "bias"):
            held = getattr(holder, leaf, None)
            if isinstance(held, nn.Parameter):
                if id(held) not in made:
                    made[id(held)] = _cut(held, keep)
                setattr(holder, leaf, made[id(held)])
        resize(holder)
        padding = getattr(holder, "padding_idx", None)
        if padding is not None:
            holder.padding_idx = int((keep < padding).sum())  # type: ignore[assignment]
    _sizes(small, size, len(keep))
    new = torch.full((size,), -1)
    new[keep] = torch.arange(len(keep))
    return small, new


def _table(net: nn.Module, table: str) -> tuple[str, nn.Embedding | nn.EmbeddingBag]:
    """The table, and its path."""
    found = {name: one for name, one in net.named_modules() if isinstance(one, _TABLES)}
    if table:
        if table not in found:
            raise ValueError(
                f"table={table!r} is no embedding of this {type(net).__name__}; it has {', '.join(found) or 'none'}"
            )
        return table, found[table]
    if len(found) != 1:
        raise ValueError(
            f"this {type(net).__name__} has {len(found)} embeddings ({', '.join(found)}); say which with table="
        )
    return next(iter(found.items()))


def _gone(ids: Iterable[int] | Tensor, size: int, path: str, module: nn.Module) -> Tensor:
    """Which rows go, (size,) bool."""
    given = ids.detach().cpu() if isinstance(ids, Tensor) else torch.tensor(list(ids))
    if len(given) and (given.is_floating_point() or given.dtype == torch.bool or given.dim() != 1):
        raise ValueError(f"ids are numbers of rows, in one dimension, not {given.dtype} of shape {tuple(given.shape)}")
    given = given.long()
    if len(given) and (int(given.min()) < 0 or int(given.max()) >= size):
        raise ValueError(
            f"ids go from {int(given.min())} to {int(given.max())}, and '{path}' has the rows 0 to {size - 1}"
        )
    gone = torch.zeros(size, dtype=torch.bool)
    gone[given] = True
    padding = getattr(module, "padding_idx", None)
    if padding is not None and bool(gone[padding]):
        raise ValueError(f"id {padding} is the padding of '{path}'; leave it in")
    if bool(gone.all()):
        raise ValueError(f"ids name all {size} rows of '{path}'; leave one at least")
    return gone


def _holders(net: nn.Module, module: nn.Module, path: str) -> dict[str, nn.Module]:
    """All layers that hold the table's parameter."""
    found: dict[str, nn.Module] = {}
    for name, one in net.named_modules(remove_duplicate=False):
        for leaf, held in one._parameters.items():
            if held is module.weight:
                if leaf != "weight" or not isinstance(one, (nn.Linear, *_TABLES)):
                    raise ValueError(
                        f"'{full_name(name, leaf)}' is the weight of '{path}' too, and a {type(one).__name__} is no table and no "
                        "linear layer; untie the two first"
                    )
                found[name] = one
    return found


def _cut(held: nn.Parameter, keep: Tensor) -> nn.Parameter:
    made = nn.Parameter(cut(held.detach(), {0: keep}), requires_grad=held.requires_grad)
    made.__dict__.update(held.__dict__)
    return made


def _sizes(net: nn.Module, before: int, after: int) -> None:
    """Numbers called `vocab_size`."""
    for module in net.modules():
        for owner in (module, vars(module).get("config")):
            if owner is not None and vars(owner).get("vocab_size") == before:
                owner.vocab_size = after
