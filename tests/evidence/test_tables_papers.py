"""What the tables ask for: settings of the papers, sizes, and the numbers that are quoted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from evidence.tables import TABLES
from evidence.tables.derived import Isolated, Narrowed, Transplanted
from evidence.tables.frankle2020 import FRANKLE, PRUNINGS, RECIPE
from evidence.tables.frankle2020 import PLACES as OPENLTH_PLACES
from evidence.tables.he2018 import SHARE, TASKS
from evidence.tables.savarese2020_cifar import CLOSABLE, PLACES
from paring.cli.experiment import Experiment
from paring.cli.rounds import masks, size
from paring.core import Clock
from paring.methods import GMP, IMP, L0, STR, Budget, ContinuousSparsification, Dense, RigL
from paring.models import build
from paring.run import attach
from paring.train import Recipe

SHAPES = {"resnet20": (3, 32, 32), "vgg16": (3, 32, 32), "conv4_16": (1, 28, 28)}


@pytest.mark.parametrize("model", PLACES)
def test_what_may_close_on_cifar(model: str) -> None:
    net = build(model, shape=SHAPES[model], classes=10)
    whole = sum(p.numel() for p in net.parameters())
    attach(net, IMP(at=PLACES[model]), torch.zeros(2, *SHAPES[model]))
    found = masks(net)
    assert sum(mask.numel() for mask in found.values()) / whole == CLOSABLE[model]
    assert len(found) == {"resnet20": 19, "vgg16": 13}[model]
    assert not any("fc" in name or "shortcut" in name for name in found)


def test_what_openlth_prunes() -> None:
    """Every convolution and linear layer of ResNet-20; VGG-16 without its classifier."""
    for model, kept in (("resnet20", set()), ("vgg16", {"fc"})):
        net = build(model, shape=SHAPES[model], classes=10)
        layers = {name for name, one in net.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}
        attach(net, IMP(at=OPENLTH_PLACES[model]), torch.zeros(2, *SHAPES[model]))
        assert set(masks(net)) == layers - kept


def test_the_settings_on_cifar() -> None:
    recipes = {
        name: {entry.experiment.recipe for entry in TABLES[name].entries(0)} for name in ("frankle2020", "savarese2020")
    }
    assert recipes["frankle2020"] == {RECIPE}
    assert {entry.experiment.norm_scales for entry in TABLES["frankle2020"].entries(0)} == {"uniform"}
    assert (RECIPE.epochs, RECIPE.milestones, RECIPE.batch, RECIPE.lr, RECIPE.weight_decay) == (
        160,
        (80, 120),
        128,
        0.1,
        1e-4,
    )
    assert (RECIPE.momentum, RECIPE.nesterov, RECIPE.gamma) == (0.9, False, 0.1)
    assert {(one.epochs, one.milestones) for one in recipes["savarese2020"]} == {
        (85, (56, 71)),
        (340, (224, 284)),
        (425, (280, 355)),
    }
    for entry in TABLES["savarese2020"].entries(0):
        method, recipe = entry.experiment.method, entry.experiment.recipe
        assert (recipe.epochs == 425) == ("5×" in entry.label)
        assert (recipe.epochs == 340) == ("340 epochs" in entry.label)
        assert recipe.epochs == 85 or isinstance(method, RigL | L0 | GMP | Dense)
        assert (recipe.device, recipe.bf16, recipe.compile, recipe.nesterov) == ("cuda", True, True, True)
        if isinstance(method, ContinuousSparsification):
            assert (method.rate, method.final_beta, method.searches, method.gate_lr) == (1e-8, 200.0, 3, 1.0)
            published = "as published" in entry.label
            assert (method.rescale, method.per) == (published, "epoch" if published else "step")
        if isinstance(method, IMP):
            assert (method.rate, method.prunings) == (0.2, PRUNINGS[entry.experiment.model])


def test_a_budget_on_cifar_is_the_density_of_what_may_close() -> None:
    for entry in TABLES["savarese2020"].entries(0):
        method = entry.experiment.method
        if isinstance(method, L0):
            assert isinstance(method.price, Budget)
            assert method.price.params is not None
            closable = CLOSABLE[entry.experiment.model]
            density = (method.price.params - (1 - closable)) / closable
            assert f"{100 * density:g}" == entry.label.split(": ")[1].removesuffix(" %")


def test_quoted_rows_are_the_released_medians() -> None:
    found = {row["method"]: round(100 - row["error"], 2) for row in FRANKLE.quoted if row["model"] == "resnet20"}
    assert found["dense (Renda et al.)"] == 91.71
    assert found["IMP (Renda et al.): 21 %"] == 91.67
    assert found["IMP, learning rate rewound (Renda et al.): 10.7 %"] == 91.01
    assert found["IMP, fine-tuning (Renda et al.): 51.2 %"] == 91.37
    assert found["IMP, rewound to 0 (Renda et al.): 10.7 %"] == 86.68
    assert len(found) == 13
    assert not TABLES["savarese2020"].quoted


def test_controls_have_the_masks_of_the_rewound_search() -> None:
    entries = TABLES["frankle2020"].entries(1)
    searches = {e.experiment.model: e.experiment for e in entries if e.label == "IMP"}
    for entry in entries:
        if entry.label.startswith("CS: "):
            method = entry.experiment.method
            assert isinstance(method, ContinuousSparsification)
            assert method.density in [0.8**round for round in (4, 8, 12)]
            assert entry.experiment.norm_scales == "uniform"
    ways = {
        e.label: e.experiment.method for e in entries if isinstance(e.experiment.method, IMP) and ":" not in e.label
    }
    assert {label: (way.retrain, way.rewind) for label, way in ways.items() if isinstance(way, IMP)} == {
        "IMP": ("weights", "2ep"),
        "IMP, learning rate rewound": ("lr", 0),
        "IMP, fine-tuning": ("finetune", 0),
        "IMP, rewound to 0": ("weights", 0),
        "IMP-C": ("none", 0),
    }
    controls = [e for e in entries if isinstance(e.experiment, Isolated)]
    assert len(controls) == 12
    for entry in controls:
        one = entry.experiment
        assert isinstance(one, Isolated)
        assert one.search == searches[one.model]
        assert entry.label.split(":")[0] == f"IMP, {one.control}"
        assert float(entry.label.split(":")[1].removesuffix(" %")) == pytest.approx(100 * 0.8**one.round, rel=1e-2)


def test_ablations_share_their_runs_with_the_table_of_comparisons() -> None:
    small = {entry.experiment.key for entry in TABLES["savarese2020-small"].entries(0)}
    entries = {entry.label: entry.experiment for entry in TABLES["savarese2020-ablations"].entries(0)}
    for label in ("CS: 10 %", "CS: 2 %", "L0: 10 %", "GMP: 2 %", "GMP, one threshold: 10 %", "STR: -3", "STR: -2"):
        assert entries[label].key in small
    for share in ("10 %", "2 %"):
        transplant = entries[f"GMP, densities of CS: {share}"]
        assert isinstance(transplant, Transplanted)
        assert transplant.source == entries[f"CS: {share}"]
    soft = entries["GMP, densities of STR: -2"]
    assert isinstance(soft, Transplanted)
    assert isinstance(soft.source.method, STR)
    assert soft.source == entries["STR: -2"]
    assert soft.recipe.weight_decay == 0
    assert soft.method == GMP()


@pytest.mark.parametrize("model", TASKS)
def test_the_uniform_rule_is_the_largest_within_half_of_the_macs(model: str) -> None:
    entries = {e.label: e.experiment for e in TABLES["he2018"].entries(0) if e.experiment.model == model}
    method = entries["uniform by magnitude, fine-tuned"].method
    assert isinstance(method, IMP)
    assert 1 - method.rate == pytest.approx(TASKS[model].uniform)

    def macs(share: float) -> float:
        net = build(model, shape=SHAPES[model], classes=10)
        asked = replace(method, rate=1 - share)
        run = attach(net, asked, torch.zeros(2, *SHAPES[model]), steps=2, epoch_steps=1)
        asked.on_round(net, Clock(0, 0, 2, 1))
        return float(size(run)["mac_density"])

    assert macs(TASKS[model].uniform) <= SHARE < macs(TASKS[model].uniform + 0.01)
    gates = entries["L0"].method
    assert isinstance(gates, L0)
    assert gates.price == Budget(macs=0.5, multiple_of=8)
    assert entries["L0, fine-tuned"] == replace(entries["L0"], finetune=entries["L0"].recipe)
    narrowed = entries["L0's widths by scale, fine-tuned"]
    assert isinstance(narrowed, Narrowed)
    assert narrowed.source == entries["L0"]
    assert narrowed.method == entries["uniform by scale, fine-tuned"].method
    assert entries["dense, twice as long"].recipe.epochs == 2 * entries["dense"].recipe.epochs


def test_scales_of_norms_may_begin_anywhere_in_0_1() -> None:
    ones = Experiment("resnet20", "digits", Dense(), Recipe(seed=3))
    drawn = replace(ones, norm_scales="uniform")
    data = ones.dataset()
    nets = [experiment.network(data) for experiment in (ones, drawn, drawn, replace(drawn, recipe=Recipe(seed=4)))]
    scales = [torch.cat([m.weight.detach() for m in net.modules() if isinstance(m, nn.BatchNorm2d)]) for net in nets]
    assert bool((scales[0] == 1).all())
    assert float(scales[1].min()) >= 0
    assert float(scales[1].max()) <= 1
    assert float(scales[1].mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(scales[1], scales[2])
    assert not torch.equal(scales[1], scales[3])
    names = [n for n, p in nets[0].named_parameters() if p.dim() > 1]
    assert all(torch.equal(nets[0].get_parameter(n), nets[1].get_parameter(n)) for n in names)
