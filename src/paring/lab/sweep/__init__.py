"""Sweeps: a grid of experiments, resumable, by one process, several, or Ray."""

from paring.lab.sweep.cluster import Ray
from paring.lab.sweep.engine import Failure, Swept, sweep
from paring.lab.sweep.executor import Executor, Job, Outcome, Serial
from paring.lab.sweep.processes import Processes
from paring.lab.sweep.trials import run_trials

__all__ = ["Executor", "Failure", "Job", "Outcome", "Processes", "Ray", "Serial", "Swept", "run_trials", "sweep"]
