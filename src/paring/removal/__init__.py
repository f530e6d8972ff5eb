"""Exact removal: plan what goes, apply it, verify that the function stayed, or take it back."""

from paring.removal.compact import compact
from paring.removal.drop_rows import drop_rows
from paring.removal.graph_form import GraphFormError
from paring.removal.graph_net import GraphNet
from paring.removal.plain_weights import plain_weights
from paring.removal.plan import ShrinkPlan
from paring.removal.report import Report

__all__ = ["GraphFormError", "GraphNet", "Report", "ShrinkPlan", "compact", "drop_rows", "plain_weights"]
