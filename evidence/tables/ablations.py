"""Ablations of Continuous Sparsification and of L0 that the reviewers of Savarese et al. 2020 asked for, on LeNet-300-100, MNIST.

The recipe is that of `savarese2020-small`; runs that both tables hold are trained once where they share `--runs`. Every row
of a method that can be asked for a density is at 10 % and 2 %:

* Continuous Sparsification: as it is; β = 1 with a threshold afterwards, and each of the two switches in it alone (no growing
  β, no steering towards the density); other final β, numbers of rounds and λ; the authors' factor 1/σ(s0); β growing by
  epoch; the initial logit s0, with the density given and (as published) without one; learning rates of the logits;
* L0 under five relaxations, and with other learning rates of its gates;
* allocation transplants: magnitude pruning (GMP) at the layer-wise densities that Continuous Sparsification, STR or the
  formula of Erdős-Rényi kernels gave, to tell what the allocation does from what the method does;
* for reference: concrete dropout (closes nothing), sparse variational dropout, and masks on weights that never move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from evidence.tables.derived import Transplanted
from evidence.tables.savarese2020 import SCALES, STR_DECAY, gates
from evidence.tables.table import Entry, Table
from paring import select
from paring.cli.experiment import Experiment
from paring.core import Method
from paring.gates import relax
from paring.methods import GMP, STR, ConcreteDropout, ContinuousSparsification, EdgePopup, SparseVD, Supermask

DENSITIES = (0.1, 0.02)
THRESHOLDS = (-3.0, -2.0)  # STR then leaves about 11 % and 1 %
MODEL, DATA = "lenet_300_100", "mnist"
_RELAXATIONS: tuple[tuple[str, relax.Relaxation], ...] = (
    ("concrete", relax.Concrete()),
    ("rectified Gaussian", relax.RectifiedGaussian()),
    ("rectified logistic", relax.RectifiedLogistic()),
    ("straight-through", relax.StraightThroughBernoulli()),
)


def _searches(density: float) -> Iterator[tuple[str, Method]]:
    plain = ContinuousSparsification(density=density, rewind="1ep")
    yield "CS", plain
    yield "CS, β = 1 and a threshold", replace(plain, final_beta=1.0, steer=False)
    yield "CS, β = 1, steered", replace(plain, final_beta=1.0)
    yield "CS, not steered", replace(plain, steer=False)
    for beta in (20.0, 2000.0):
        yield f"CS, final β = {beta:g}", replace(plain, final_beta=beta)
    for searches in (1, 2, 5):
        yield (
            f"CS, {searches} rounds of search" if searches > 1 else "CS, one round of search",
            replace(plain, searches=searches),
        )
    yield "CS, λ = 1e-6", replace(plain, rate=1e-6)
    yield "CS, factor 1/σ(s0)", replace(plain, rescale=True)
    yield "CS, β by epoch", replace(plain, per="epoch")
    for s0 in (-0.1, 0.1):
        yield f"CS, s0 = {s0:g}", replace(plain, s0=s0)
    for times in (0.1, 10.0, 100.0):
        yield f"CS, logits at {times:g} × the rate", replace(plain, gate_lr=times)


def _stochastic(density: float) -> Iterator[tuple[str, Method]]:
    plain = gates(density, SCALES[MODEL].starts[density])
    yield "L0", plain
    for name, relaxation in _RELAXATIONS:
        yield f"L0, {name}", replace(plain, gate=relaxation)
    for times in (1.0, 100.0):
        yield f"L0, gates at {times:g} × the rate", replace(plain, gate_lr=times)


def _magnitude(density: float) -> Iterator[tuple[str, Method]]:
    for name, allocation in (
        ("", select.Uniform()),
        (", one threshold", select.Global()),
        (", ERK", select.ErdosRenyi()),
    ):
        yield f"GMP{name}", GMP(density=density, allocation=allocation)


def _alone() -> Iterator[tuple[str, Method]]:
    """What cannot be asked for a density."""
    for s0 in (-0.05, 0.0, 0.05):
        yield f"CS, no density: s0 = {s0:g}", ContinuousSparsification(s0=s0, rewind="1ep")
    yield "concrete dropout", ConcreteDropout()
    yield "sparse variational dropout", SparseVD()
    yield "supermask", Supermask(gate_lr=25.0)
    for density in DENSITIES:
        yield f"edge-popup: {100 * density:g} %", EdgePopup(keep=density, gate_lr=10.0)


def _ablations(seed: int) -> list[Entry]:
    recipe = replace(SCALES[MODEL].recipe, seed=seed)

    def entry(label: str, method: Method) -> Entry:
        return Entry(label, Experiment(MODEL, DATA, method, recipe))

    def transplant(label: str, source: Entry) -> Entry:
        return Entry(label, Transplanted(MODEL, DATA, GMP(), recipe, source=source.experiment))

    found = []
    for density in DENSITIES:
        share = f"{100 * density:g} %"
        for family in (_searches, _stochastic, _magnitude):
            found += [entry(f"{name}: {share}", method) for name, method in family(density)]
        searched = entry("CS", ContinuousSparsification(density=density, rewind="1ep"))
        found.append(transplant(f"GMP, densities of CS: {share}", searched))
    for threshold in THRESHOLDS:
        decayed = replace(recipe, weight_decay=STR_DECAY)
        soft = Entry(f"STR: {threshold:g}", Experiment(MODEL, DATA, STR(s_init=threshold), decayed))
        found += [soft, transplant(f"GMP, densities of STR: {threshold:g}", soft)]
    return found + [entry(label, method) for label, method in _alone()]


ABLATIONS = Table(
    "savarese2020-ablations", "what each part of CS and of L0 does, and layer-wise densities given to GMP", _ablations
)
