"""Gates, the places where they go, and how open they are."""

from paring.gates.binary_weights import BinaryWeights, is_binary
from paring.gates.dropout_gate import DropoutGate
from paring.gates.frozen import rest_weights, set_signed_constant
from paring.gates.gate_groups import Groups, groups
from paring.gates.gaussian_gate import GaussianGate
from paring.gates.left_out import say_left_out
from paring.gates.live_units import live
from paring.gates.mask_gate import MaskGate
from paring.gates.masking import (
    clear_closed,
    forget,
    freeze_masks,
    input_groups,
    latent_of,
    mask_of,
    masks_of,
    put_aside,
    put_masks,
    set_masks,
    sites_of,
    weight_of,
    weight_sites,
    weights_of,
)
from paring.gates.openness import expected, gate_of, openness, replaced, support, tied
from paring.gates.place import Site, put_gate, sites
from paring.gates.reader import ReadingGate, read_weights
from paring.gates.scale_gate import ScaleGate
from paring.gates.sigmoid_gate import SigmoidGate
from paring.gates.soft_threshold_gate import SoftThresholdGate
from paring.gates.stochastic_gate import StochasticGate
from paring.gates.supermask_gate import PopupGate, SupermaskGate
from paring.gates.why_not_gateable import carrier_of

__all__ = [
    "BinaryWeights",
    "DropoutGate",
    "GaussianGate",
    "Groups",
    "MaskGate",
    "PopupGate",
    "ReadingGate",
    "ScaleGate",
    "SigmoidGate",
    "Site",
    "SoftThresholdGate",
    "StochasticGate",
    "SupermaskGate",
    "carrier_of",
    "clear_closed",
    "expected",
    "forget",
    "freeze_masks",
    "gate_of",
    "groups",
    "input_groups",
    "is_binary",
    "latent_of",
    "live",
    "mask_of",
    "masks_of",
    "openness",
    "put_aside",
    "put_gate",
    "put_masks",
    "read_weights",
    "replaced",
    "rest_weights",
    "say_left_out",
    "set_masks",
    "set_signed_constant",
    "sites",
    "sites_of",
    "support",
    "tied",
    "weight_of",
    "weight_sites",
    "weights_of",
]
