"""Sweeps: a grid of experiments, resumable, by one process, several, or Ray."""

from paring.cli.sweep.cluster import Ray
from paring.cli.sweep.engine import Failure, Swept, sweep
from paring.cli.sweep.executor import Executor, Job, Outcome, Serial
from paring.cli.sweep.processes import Processes
from paring.cli.sweep.trials import run_trials

__all__ = ["Executor", "Failure", "Job", "Outcome", "Processes", "Ray", "Serial", "Swept", "run_trials", "sweep"]
