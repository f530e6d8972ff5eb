"""Clock, gates, gated layers and the method contract: everything the rest of paring is built on."""

from paring.core import validate
from paring.core.attachment import STATE_KEY, Attachment, attached, bare_state, is_attached, set_attachment
from paring.core.clock import Clock, in_steps, steps_or_share
from paring.core.file_error import FileError
from paring.core.first_name import first_name, hashed_as
from paring.core.gate import Gate, noise_dtype
from paring.core.inputs import Example, Inputs
from paring.core.kinds import Kind, derived, gateable, kind_of, kinds, register, sized, stock_class
from paring.core.layers import Gated, GatedCall, PlaceKind
from paring.core.method import GOALS, Method, Probe, Removal, Rewind, Stack
from paring.core.mount import factors, gate_shape, gated_layers, gates, put, release, share, strip
from paring.core.packed import GatedPacked, named_weight, packed_name
from paring.core.padded_layer_norm import PaddedLayerNorm
from paring.core.places import PLACE_KINDS, At, Place, Places, names_layer, settle_places
from paring.core.refusal import Refusal
from paring.core.select_linear import SelectLinear
from paring.core.sharding import is_sharded
from paring.core.shared_gate import SharedGate
from paring.core.short_repr import Shorthand, short_repr
from paring.core.training_state import STATE_FIELDS, TrainingState
from paring.core.unwrap import plain_net, unaveraged, unwrapped, wrappers
from paring.core.warning import ParingWarning, warn
from paring.core.watch import Progress, Watch

__all__ = [
    "GOALS",
    "PLACE_KINDS",
    "STATE_FIELDS",
    "STATE_KEY",
    "At",
    "Attachment",
    "Clock",
    "Example",
    "FileError",
    "Gate",
    "Gated",
    "GatedCall",
    "GatedPacked",
    "Inputs",
    "Kind",
    "Method",
    "PaddedLayerNorm",
    "ParingWarning",
    "Place",
    "PlaceKind",
    "Places",
    "Probe",
    "Progress",
    "Refusal",
    "Removal",
    "Rewind",
    "SelectLinear",
    "SharedGate",
    "Shorthand",
    "Stack",
    "TrainingState",
    "Watch",
    "attached",
    "bare_state",
    "derived",
    "factors",
    "first_name",
    "gate_shape",
    "gateable",
    "gated_layers",
    "gates",
    "hashed_as",
    "in_steps",
    "is_attached",
    "is_sharded",
    "kind_of",
    "kinds",
    "named_weight",
    "names_layer",
    "noise_dtype",
    "packed_name",
    "plain_net",
    "put",
    "register",
    "release",
    "set_attachment",
    "settle_places",
    "share",
    "short_repr",
    "sized",
    "steps_or_share",
    "stock_class",
    "strip",
    "unaveraged",
    "unwrapped",
    "validate",
    "warn",
    "wrappers",
]
