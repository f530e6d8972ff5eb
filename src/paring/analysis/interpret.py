"""From a captured network to what its activations carry: the interpreter, handed its rules."""

from __future__ import annotations

import torch
from torch import nn

from paring.analysis.alone import alone
from paring.analysis.capture import Captured
from paring.analysis.found import found
from paring.analysis.interpretation import Interpretation
from paring.analysis.interpreter import FreeInterpreter, Interpreter, Rules
from paring.analysis.loose import settle
from paring.analysis.rules import FIXED, FREE, dead_nodes
from paring.analysis.shared_layers import keep_shared
from paring.analysis.stacked_weights import operand
from paring.analysis.starts import start

__all__ = ["Interpretation", "interpret"]


@alone()
def interpret(
    net: nn.Module,
    captured: Captured,
    *,
    training: bool,
    free: bool = False,
    finer: bool = False,
    recurrent: bool = False,
) -> Interpretation:
    """Labels and values of the captured `net`. training: batch norms and dropouts as in train mode, else as in eval.

    free: sizes in the forward may change with the widths, so units may lie along several dimensions (heads), be cut at
    a position, meet in attention, and belong to parameters outside of stock layers. `grids`, `slice_ties` and `contractions`
    then say what that asks for, `aliases` which parameters such layers stand for, `layouts` where the units lie in each
    result (in order), `names` whose units they are. Without it, `held_back` says that it might allow more.
    finer: also units that no gate closes: single channels of a convolution's groups; and what `recurrent` says.
    recurrent: also hidden units of recurrent layers.
    """
    with torch.no_grad():
        rules = Rules(FREE if free else FIXED, found, start, keep_shared, settle, operand)
        if free:
            dead = dead_nodes(captured.nodes)
            return FreeInterpreter(
                net, captured, rules, training=training, finer=finer, recurrent=recurrent or finer, skip=dead
            ).run()
        return Interpreter(net, captured, rules, training=training, finer=finer, recurrent=recurrent or finer).run()
