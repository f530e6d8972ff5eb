"""Lottery tickets: find subnetworks, train them in isolation, and say which of them match the dense network."""

from paring.cli.tickets.protocol import Plan, run_plan
from paring.cli.tickets.retrain import Retrain
from paring.cli.tickets.verdict import Level, Verdict, judge

__all__ = ["Level", "Plan", "Retrain", "Verdict", "judge", "run_plan"]
