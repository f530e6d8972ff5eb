"""Rules for recurrent layers of torch: RNN, GRU, LSTM, stacked, in both directions, projected.

Hidden unit j has one row in each gate, and one column in the weights that read the state. Every layer and direction is a
site with columns for its input and for its own state. Started at zero, a unit stays zero when

* RNN: its row reads zeros only, and f(b) = 0;
* GRU: the same of its candidate, with both biases zero: h' = (1 - z) n + z h;
* LSTM: the same of its candidate g: c' = f c + i g, h = o tanh(c).

The largest set of units that do so given each other is found from above; by induction over time all of them are zero. With
a projection h = W_hr (o tanh c) the cells are units of one site, what is projected those of a second one. All layers and
directions have to keep the same number of units.

A cell in a loop is called once for every step: what it reads of the step before are its own units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from paring.analysis.grids import Grid, Layout
from paring.analysis.labels import spread, uniform
from paring.analysis.memory import base_name
from paring.analysis.recurrence import Recurrence
from paring.analysis.repeats import once
from paring.analysis.starts import MADE
from paring.analysis.state import Ref, Site, State, module_path, packet, shape_of
from paring.core.recurrent import gates_of, suffixes

if TYPE_CHECKING:
    from paring.analysis.interpreter import Interpreter

NAMES = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")


def recurrent(run: Interpreter, node: fx.Node) -> object:
    """`lstm`, `gru`, `rnn_tanh`, `rnn_relu` of a stock layer whose state begins at zero."""
    path = module_path(node)
    module = run.net.get_submodule(path)
    x, starts = run.states(node.args[0]), pytree.tree_leaves(run.states(node.args[1]))
    plain = isinstance(module, nn.RNNBase) and gates_of(module) and isinstance(x, State)
    if (
        not run.recurrent
        or not plain
        or packet(node.target) not in NAMES
        or len(node.args) < 9
        or not _own(run, node, module, node.args[2])
    ):
        return run.barrier(node)
    if not all(isinstance(one, State) and bool((once(one.value) == 0).all()) for one in starts):
        return run.barrier(node)
    columns = run.lines(x.labels, -1)
    if columns is None:
        return run.barrier(node)
    assert isinstance(module, nn.RNNBase)
    zero = uniform(x.value, -1) == 0
    cells: list[Tensor] = []
    states: list[Tensor] = []
    still: list[Tensor] = []  # cells that stay zero
    quiet: list[Tensor] = []  # the same of states
    for ways in suffixes(module):
        for end in ways:
            made = _Layer(run, node, path, module, end, columns, zero).made()
            for known, one in zip((cells, states, still, quiet), made, strict=True):
                known.append(one)
        columns, zero = torch.cat(states[-len(ways) :]), torch.cat(quiet[-len(ways) :])
    if len(states) > 1:
        run.grids += [Grid(torch.stack(cells)), *([Grid(torch.stack(states))] if module.proj_size else [])]
    for start, units in zip(_nodes(node.args[1]), (states, cells), strict=False):
        _note_start(run, start, units)
    shapes = [shape_of(one) for one in pytree.tree_leaves(node.meta["val"])]
    last = len(shapes[0]) - 1
    results = [State(spread(columns, shapes[0], last), spread(_constants(zero), shapes[0], last))]
    for shape, units, dead in zip(shapes[1:], (states, cells), (quiet, still), strict=False):
        lie = [len(units), *[1] * (len(shape) - 2), -1]
        labels, value = torch.stack(units).view(lie), _constants(torch.stack(dead)).view(lie)
        results.append(State(labels.expand(shape).clone(), value.expand(shape).clone()))
    return results


def cell(run: Interpreter, node: fx.Node) -> object:
    """`lstm_cell`, `gru_cell`, `rnn_tanh_cell`, `rnn_relu_cell`: one step, whose state is that of the step before."""
    path = module_path(node)
    module = run.net.get_submodule(path)
    x, held = run.states(node.args[0]), pytree.tree_leaves(run.states(node.args[1]))
    plain = gates_of(module) and isinstance(x, State) and all(isinstance(one, State) for one in held)
    if not run.recurrent or not plain or not _own(run, node, module, node.args[2:]):
        return run.barrier(node)
    columns = run.lines(x.labels, -1)
    if columns is None:
        return run.barrier(node)
    layer = _Layer(run, node, path, module, "", columns, uniform(x.value, -1) == 0)
    units, still = layer.step(held)
    shapes = [shape_of(one) for one in pytree.tree_leaves(node.meta["val"])]
    made = [
        State(spread(units, shape, len(shape) - 1), spread(_constants(still), shape, len(shape) - 1))
        for shape in shapes
    ]
    return made if len(made) > 1 else made[0]


class _Layer:
    """One layer and direction."""

    def __init__(
        self, run: Interpreter, node: fx.Node, path: str, module: nn.Module, end: str, columns: Tensor, zero: Tensor
    ) -> None:
        self.run, self.node, self.path, self.module, self.end = run, node, path, module, end
        self.columns, self.zero, self.gates = columns, zero, gates_of(module)
        self.ih, self.hh, self.b_ih, self.b_hh, self.hr = (
            self._held(leaf) for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        )

    def _held(self, leaf: str) -> Tensor:
        held = getattr(self.module, leaf + self.end, None)
        return torch.zeros(0) if held is None else held.detach().to("cpu", torch.float64)

    def step(self, held: list[State]) -> tuple[Tensor, Tensor]:
        """Ids of the units of a cell, and which of them are zero after one step. held: states, whose units are these."""
        units = self.run.new_units(f"{self.path}.hidden" if self.path else "hidden", len(self.hh) // self.gates)
        columns = [self.run.lines(one.labels, -1) for one in held]
        read = columns[0] if columns[0] is not None else torch.full_like(units, -1)
        for one, column in zip(held, columns, strict=True):
            if column is None:
                self.run.keep(one.labels, f"read by '{self.path}' across several dimensions")
                self.run.keep(units, f"'{self.path}' begins with a state that cannot shrink")
            else:
                self.run.couple(units, column, f"the state of '{self.path}'")
        quiet = uniform(held[0].value, -1) == 0
        still = self._silent() & ~(self._candidate(self.hh) != 0)[:, ~quiet].any(1)
        if self.gates > 1:  # what is kept of the state before
            still &= uniform(held[-1].value, -1) == 0
        reads = torch.cat([self._by_unit(self.ih), self._by_unit(self.hh)], 1)
        leaves = {"weight_ih": 1, "weight_hh": 2} | {leaf: 0 for leaf in ("bias_ih", "bias_hh") if self.module.bias}
        known = torch.cat([_constants(self.zero), _constants(quiet)])
        stand_in = Recurrence(self.path, reads, leaves, self.ih.shape[1], self.gates)
        self._site(f"{self.path}.hidden", stand_in, units, torch.cat([self.columns, read]), known, still)
        return units, still

    def made(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids of cells and of states, which cells stay zero, and which states."""
        count, projected = len(self.hh) // self.gates, len(self.hr)
        stem = self.end.removeprefix("_")
        name = f"{self.path}.{stem}" if self.path else stem
        cells = self.run.new_units(name, count)
        states = self.run.new_units(f"{name}.hr", projected) if projected else cells
        still, quiet = self._zeros()
        reads = torch.cat([self._by_unit(self.ih), self._by_unit(self.hh)], 1)
        leaves = {f"weight_ih{self.end}": 1, f"weight_hh{self.end}": 2}
        leaves |= {f"{leaf}{self.end}": 0 for leaf in ("bias_ih", "bias_hh") if self.module.bias}
        known = torch.cat([_constants(self.zero), _constants(quiet)])
        stand_in = Recurrence(self.path, reads, leaves, self.ih.shape[1], self.gates)
        self._site(name, stand_in, cells, torch.cat([self.columns, states]), known, still)
        if projected:
            stand_in = Recurrence(self.path, self.hr, {f"weight_hr{self.end}": 1}, count, 1)
            self._site(f"{name}.hr", stand_in, states, cells, _constants(still), quiet)
        return cells, states, still, quiet

    def _site(
        self, name: str, stand_in: Recurrence, units: Tensor, columns: Tensor, constants: Tensor, dead: Tensor
    ) -> None:
        shape = shape_of(pytree.tree_leaves(self.node.meta["val"])[0])
        steps = self.run.per_example(self.node, torch.Size(shape[:-1]).numel())
        site = Site(
            name,
            "recurrent",
            stand_in,
            self.node,
            units,
            columns,
            constants,
            _constants(dead),
            padded=False,
            positions=steps,
            plain=True,
        )
        self.run.sites.append(site)

    def _by_unit(self, weight: Tensor) -> Tensor:
        """Whether a unit reads a column in any of its gates."""
        return (weight.view(self.gates, -1, weight.shape[1]) != 0).any(0).double()

    def _candidate(self, held: Tensor) -> Tensor:
        """The rows of g, of n, or of all there is: what a unit's state is made of."""
        return held.chunk(self.gates)[0 if self.gates == 1 else 2]

    def _silent(self) -> Tensor:
        """Which candidates are zero, as far as inputs and biases go."""
        silent = (self._candidate(self.ih)[:, ~self.zero] == 0).all(1)
        if self.module.bias:
            first, second = self._candidate(self.b_ih), self._candidate(self.b_hh)
            if self.gates == 3:
                silent &= (first == 0) & (second == 0)
            elif base_name(self.node).startswith("rnn_relu"):
                silent &= first + second <= 0
            else:
                silent &= first + second == 0
        return silent

    def _zeros(self) -> tuple[Tensor, Tensor]:
        """Which cells and which states stay zero."""
        silent = self._silent()
        reads = self._candidate(self.hh) != 0
        quiet = torch.ones(reads.shape[1], dtype=torch.bool)
        while True:
            still = silent & ~reads[:, ~quiet].any(1)
            less = ~(self.hr[:, ~still] != 0).any(1) if len(self.hr) else still
            if torch.equal(less, quiet):
                return still, quiet
            quiet = less


def _own(run: Interpreter, node: fx.Node, module: nn.Module, given: Any) -> bool:
    """Are these the module's own parameters, untied, and read by recurrent layers alone?"""
    held = run.values(given)
    mine = list(module.parameters(recurse=False))
    if len(held) != len(mine) or not all(isinstance(one, Ref) for one in held) or run.tied(*held):
        return False
    alone = all(packet(user.target) in (*NAMES, *CELLS) for one in given for user in one.users)
    return alone and {id(one.tensor) for one in held} == {id(one) for one in mine}


def _constants(zero: Tensor) -> Tensor:
    return torch.where(zero, 0.0, torch.nan).double()


def _nodes(given: Any) -> list[fx.Node]:
    return [
        one for one in pytree.tree_leaves(given, is_leaf=lambda v: isinstance(v, fx.Node)) if isinstance(one, fx.Node)
    ]


def _note_start(run: Interpreter, node: fx.Node, units: list[Tensor]) -> None:
    """Zeros that a state begins with follow the number of its units."""
    shape = shape_of(node.meta["val"])
    last = len(shape) - 1
    box = units[0] if len(units) == 1 else torch.stack(units)
    if not node.all_input_nodes or packet(node.target) in MADE:
        run.note_layouts(node, [Layout(shape, (last,) if len(units) == 1 else (0, last), box)])
