"""Layers that are called more than once, and layers whose parameters are tied or used elsewhere too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from paring.analysis.projection import Projection
from paring.analysis.recurrence import Recurrence
from paring.analysis.state import COMPUTED, FeatureNorm, NormSite, Site, module_path, ties_of
from paring.analysis.weights import is_a
from paring.core import kind_of

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter


def keep_shared(run: Interpreter, users: Mapping[str, set[fx.Node]]) -> None:
    """Layers whose parameters are tied or used elsewhere keep units and inputs; those called twice, what differs.

    users: of every parameter and buffer by name, what reads it.
    """
    calls: dict[str, set[fx.Node]] = {}
    mixed: list[NormSite | FeatureNorm] = [*run.norms, *run.slopes, *(norm for norm in run.features if not norm.loose)]
    called: list[Site | NormSite | FeatureNorm] = [*run.sites, *mixed]
    for one in called:
        calls.setdefault(one.name, set()).add(one.node)
    modules = {one.name: one.module for one in called}
    ties = ties_of(run.net)
    tables = _tied_tables(run, users, ties)
    for name, nodes in calls.items():
        if name in tables:
            continue
        away = any(module_path(node) != name for node in nodes) and not isinstance(modules[name], Recurrence)
        borrowed = f"the weight of '{name}' is used without calling the module" if away else ""
        run.held_back |= away and not run.free
        foreign = "" if run.free else borrowed  # where sizes may change, the graph is what counts
        kind = kind_of(modules[name])
        own = () if kind is None else kind.own
        for leaf in ("weight", "bias", "running_mean", "running_var", *own):
            if isinstance(modules[name], Projection) and leaf == "bias":  # what is added elsewhere is no part of it
                continue
            full = f"{name}.{leaf}" if name else leaf
            if full in ties:
                foreign = foreign or f"'{full}' is tied to '{ties[full]}'"
            if leaf not in own and users.get(full, set()) - nodes:
                computed = any(site.name == name and not site.plain for site in run.sites)
                foreign = foreign or (COMPUTED if computed else f"'{full}' is also used outside its layer")
        sites = [site for site in run.sites if site.name == name]
        norms = [norm for norm in mixed if norm.name == name]
        if foreign:
            for norm in norms:
                run.keep(norm.labels, foreign)
            for site in sites:
                site.shared, site.foreign = True, foreign
                run.keep(site.units, foreign)
                run.keep(site.columns, f"read by a shared layer: {foreign}")
            continue
        for site in sites if borrowed else ():
            site.foreign = "" if _in_attention(run, site) else borrowed
        if len(nodes) > 1:
            _call_again(run, name, sites, norms)


def _in_attention(run: Interpreter, site: Site) -> bool:
    """Whether the gates of this layer are those of the attention that it is a part of, or no module holds it."""
    path, _, leaf = site.name.rpartition(".")
    owner = run.net.get_submodule(path)
    loose = isinstance(site.module, Projection) and leaf not in owner._modules
    return loose or isinstance(owner, nn.MultiheadAttention)


def _tied_tables(run: Interpreter, users: Mapping[str, set[fx.Node]], ties: Mapping[str, str]) -> set[str]:
    """Embeddings, and the linear layers that are tied to one: the units of the one are the columns of the other.

    The rows of the linear layer stay, as there is one for each entry of the table.
    """
    found: set[str] = set()
    for table in run.sites:
        weight = table.module._parameters.get("weight")
        if not table.lookup or weight is None or f"{table.name}.weight" not in ties:
            continue
        among = [site for site in run.sites if getattr(site.module, "weight", None) is weight]
        names = {f"{site.name}.weight" for site in among}
        storage = weight.untyped_storage().data_ptr()
        same = {
            n
            for n, p in run.net.named_parameters(remove_duplicate=False)
            if n in ties and p.untyped_storage().data_ptr() == storage
        }
        readers = set().union(*(users.get(name, set()) for name in names))
        fits = all(site.plain and (site.lookup or is_a(site.module, "linear")) for site in among)
        if not fits or same != names or readers != {site.node for site in among}:
            continue
        if any(module_path(site.node) != site.name for site in among):
            continue
        tied = f"its weight is tied to '{table.name}'"
        for site in among:
            site.shared, site.foreign = True, tied
            found.add(site.name)
            if not site.lookup:
                run.couple(table.units, site.columns, tied)
                run.keep(site.units, tied)
                site.tied = True
                if f"{site.name}.bias" in ties:  # nowhere to fold a constant
                    site.constants = torch.where(site.constants == 0, site.constants, torch.nan)
            elif site is not table:
                run.couple(table.units, site.units, tied)
        for name in {site.name for site in among if not site.lookup}:
            _call_again(run, name, [site for site in among if site.name == name], [])
    return found


def _call_again(run: Interpreter, name: str, sites: list[Site], norms: Sequence[NormSite | FeatureNorm]) -> None:
    """What its calls read goes only at all of them, constants are those that are the same at all of them."""
    reason = f"read by '{name}' at each of its calls"
    for norm in norms[1:]:
        run.couple(norms[0].labels, norm.labels, reason)
    for site in sites[1:]:
        run.couple(sites[0].columns, site.columns, reason)
    if sites:
        first = sites[0].constants
        alike = torch.stack([torch.isclose(first, one.constants, rtol=1e-9, atol=0.0) for one in sites]).all(0)
        for site in sites:
            site.shared, site.constants = True, torch.where(alike, first, torch.nan)
