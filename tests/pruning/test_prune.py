"""`pr.prune`: a trained network, as small as asked, the original untouched."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import paring as pr
from paring.pruning import Magnitude, Search, Teacher, Tune, tune
from paring.pruning.gated import GatedCopy
from paring.pruning.prune import cross_entropy
from paring.pruning.pruned import Look
from paring.train.checkpoint import CheckpointError
from pruning.networks import Auxiliary, Residual, Shuffled, batches, mlp, seeded


@pytest.fixture(scope="module")
def trained() -> Residual:
    net: Residual = seeded(Residual)
    tune(net, batches((2, 6, 6), count=8), cross_entropy, Tune(8))
    return net.train()


def error(net: nn.Module) -> float:
    with torch.no_grad():
        return sum(float((net(x).argmax(1) != y).float().mean()) for x, y in batches((2, 6, 6), count=8)) / 8


def test_half_as_large_and_the_original_untouched(trained: Residual) -> None:
    found = Shuffled(batches((2, 6, 6), count=8))
    before, mode = copy.deepcopy(trained.state_dict()), trained.training
    net, pruned = pr.prune(trained, found, to=pr.Budget(macs=0.5), epochs=3, metric=error)
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert trained.training == mode
    assert not net.training
    assert pruned.shares["macs"] <= 0.5
    assert type(net) is Residual
    assert sum(p.numel() for p in net.parameters()) == pruned.removal.parameters[1] < pruned.removal.parameters[0]
    dense, cut, end = pruned.looks
    assert end.metric == error(net)
    assert dense.metric == error(copy.deepcopy(trained).eval())
    assert end.loss < cut.loss
    assert "macs" in str(pruned)
    assert pruned.to_dict()["steps"] == 24


@pytest.mark.parametrize(("share", "rounds"), [(1.0, 1), (0.9, 1), (0.84, 1), (0.5, 4), (0.25, 8), (0.1, 14)])
def test_as_many_rounds_as_the_cut_needs(share: float, rounds: int) -> None:
    assert Search().rounds_for({"macs": share, "parameters": 1.0}) == rounds
    assert Search(rounds=3).rounds_for({"macs": share}) == 3


def test_repair_keeps_more_than_no_repair(trained: Residual) -> None:
    found = batches((2, 6, 6), count=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pr.ParingWarning)
        _, bare = pr.prune(trained, found, to=pr.Budget(macs=0.5), epochs=0, search=Search(repair=False))
    _, kept = pr.prune(trained, found, to=pr.Budget(macs=0.5), epochs=0)
    assert kept.looks[1].loss < bare.looks[1].loss


def test_a_loss_that_rose_is_said() -> None:
    net = seeded(mlp)
    found = batches((5,), count=2)
    tune(net, found, cross_entropy, Tune(100, optimizer=lambda p: torch.optim.Adam(p, lr=0.01)))
    with pytest.warns(pr.ParingWarning, match=r"the loss rose from .* to .*epochs=2 or more"):
        pr.prune(net, found, to=pr.Budget(macs=0.15), epochs=0, search=Search(repair=False))


def test_several_budgets_from_one_search(trained: Residual) -> None:
    found = batches((2, 6, 6), count=8)
    many = pr.prune(trained, found, to=[pr.Budget(macs=0.6), pr.Budget(macs=0.4, params=0.4)], epochs=1)
    sizes = [sum(p.numel() for p in net.parameters()) for net, _ in many]
    assert sizes[0] > sizes[1]
    assert many[1][1].shares["parameters"] <= 0.4
    again, _ = pr.prune(trained, found, to=pr.Budget(macs=0.4, params=0.4), epochs=1)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), many[1][0].state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("stop", [3, 12])
def test_the_same_call_goes_on_bit_for_bit(trained: Residual, tmp_path: Path, stop: int) -> None:
    found = Shuffled(batches((2, 6, 6), count=8))
    asked: dict[str, Any] = {"to": pr.Budget(macs=0.5), "epochs": 2}

    def watch(progress: Any) -> None:
        if progress.done == stop:
            raise KeyboardInterrupt

    torch.manual_seed(5)
    straight, _ = pr.prune(trained, found, **asked)
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        pr.prune(trained, found, **asked, folder=tmp_path, watch=watch)
    torch.manual_seed(6)
    again, _ = pr.prune(trained, found, **asked, folder=tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), again.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match="another network"):
        pr.prune(seeded(Residual, 9), found, **asked, folder=tmp_path)
    with pytest.raises(CheckpointError, match="belongs to prune"):
        pr.prune(trained, found, to=pr.Budget(macs=0.3), epochs=2, folder=tmp_path)


def test_a_folder_goes_on_with_the_same_optimizer_loss_and_data_alone(tmp_path: Path) -> None:
    def call(rate: float = 0.01, loss: Any = None, seed: int = 0) -> Any:
        how = Tune(1, optimizer=lambda p: torch.optim.SGD(p, lr=rate))
        return pr.prune(
            seeded(mlp), batches((5,), seed=seed), loss, to=pr.Budget(macs=0.5), training=how, folder=tmp_path
        )

    call()
    call()
    with pytest.raises(CheckpointError, match=r"belongs to another optimizer, SGD with .*'lr': 0.01"):
        call(rate=0.1)
    with pytest.raises(CheckpointError, match="another loss or other data: the loss on the first batch was"):
        call(loss=lambda net, batch: 2 * cross_entropy(net, batch))
    with pytest.raises(CheckpointError, match="another loss or other data"):
        call(seed=1)


def test_mappings_and_losses_of_their_own() -> None:
    class Answer(dict[str, Tensor]):
        pass

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 16), nn.Linear(16, 3)

        def forward(self, values: Tensor, labels: Tensor | None = None) -> Any:
            logits = self.b(torch.relu(self.a(values)))
            if labels is None:
                return {"logits": logits}
            return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    torch.manual_seed(0)
    net = Mapped()
    found = [{"values": x, "labels": y} for x, y in batches((5,))]
    small, pruned = pr.prune(net, found, to=pr.Budget(macs=0.5), epochs=1)
    assert pruned.shares["macs"] <= 0.5
    assert set(small(found[0]["values"])) == {"logits"}

    def features(net: nn.Module, batch: Any) -> Tensor:
        out: Tensor = net(values=batch["values"])["logits"].square().mean()
        return out

    small, _ = pr.prune(net, found, features, to=pr.Budget(params=0.6), epochs=1, teacher=Teacher(weight=0.9))
    assert small.a.out_features < 16


class OnlyOnce:
    """Its iterator does not begin anew."""

    def __init__(self) -> None:
        self.left = iter(batches((5,)))

    def __iter__(self) -> Any:
        return self.left


OUTSIDE = mlp()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"to": []}, "asks for nothing"),
        ({"to": pr.Budget(macs=1e-6)}, "cannot be met"),
        ({"batches": iter(batches((5,)))}, "only once"),
        ({"batches": []}, "batches is empty"),
        ({"validate": []}, "validate is empty"),
        ({"validate": iter(batches((5,)))}, "validate is a list_iterator"),
        ({"batches": [(torch.randn(4, 5), torch.randn(4, 3))]}, "integer labels"),
        ({"batches": [torch.randn(4, 5)]}, "Give loss="),
        ({"net": nn.Sequential(nn.Linear(5, 3))}, "no place for gates"),
        ({"net": mlp().requires_grad_(False)}, "requires_grad"),
        ({"loss": lambda net, batch: batch[0].sum()}, "did not call the network"),
        ({"loss": nn.functional.cross_entropy}, r"is called as loss\(net, batch\)"),
        ({"loss": lambda batch: batch}, r"takes 1 positional .*is called as loss\(net, batch\)"),
        ({"loss": lambda net, batch: net(batch[0]).mean() * float("nan"), "validate": None}, "finite"),
        ({"epochs": 1, "training": Tune(2)}, "two lengths"),
        ({"batches": OnlyOnce()}, "batches ran out: they are gone through several times"),
        ({"validate": OnlyOnce()}, "validate ran out: they are gone"),
        ({"loss": lambda net, batch: OUTSIDE(batch[0]).sum()}, "not a network from outside"),
        ({"metric": lambda net: "good"}, r"metric\(net\) has to return one number, and returned a str"),
        ({"metric": lambda net: torch.ones(2)}, "returned a Tensor"),
        ({"training": Tune(1, optimizer=lambda p: None)}, "returned a NoneType"),  # type: ignore[arg-type, return-value]
        ({"training": Tune(1, optimizer=lambda p: torch.optim.SGD(OUTSIDE.parameters()))}, "other parameters than it was given"),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_said_and_left_alone(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"net": seeded(mlp), "batches": batches((5,)), "to": pr.Budget(macs=0.5), "epochs": 1}
    given |= change
    net = given["net"].train()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=said):
        pr.prune(**given)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_frozen_layers_stay_as_they_are() -> None:
    net = seeded(mlp)
    net[4].weight.requires_grad_(False)
    small, _ = pr.prune(net, batches((5,)), to=pr.Budget(macs=0.5), epochs=1)
    stays = [column for column in net[4].weight.T if any(torch.equal(column, other) for other in small[4].weight.T)]
    assert len(stays) == small[4].in_features


def test_what_was_closed_and_stayed_is_said(trained: Residual) -> None:
    _, pruned = pr.prune(trained, batches((2, 6, 6)), to=pr.Budget(macs=0.9), epochs=0)
    assert not pruned.notes
    before, after = pruned.removal.parameters
    within, beyond = (replace(pruned, removal=replace(pruned.removal, parameters=(before, n))) for n in (after, before))
    assert not within.notes
    assert any("of the parameters were to stay, and 100.0% did" in note for note in beyond.notes)


def test_a_loss_that_is_no_number_after_training_is_said(trained: Residual) -> None:
    _, pruned = pr.prune(trained, batches((2, 6, 6)), to=pr.Budget(macs=0.9), epochs=0)
    dense, cut, _ = pruned.looks
    broken = replace(pruned, looks=(dense, cut, Look(float("nan"))))
    assert ["is nan after training: lower the learning rate" in note for note in broken.notes] == [True]


def test_a_loader_without_a_length_will_do() -> None:
    class Streamed(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(batches((5,), count=3))

    _, pruned = pr.prune(
        seeded(mlp), DataLoader(Streamed(), batch_size=None), to=pr.Budget(macs=0.5), epochs=1, teacher=None
    )
    assert pruned.training.steps == 3


def test_parts_that_are_compiled_come_back_plain() -> None:
    net = seeded(mlp)
    found, _ = pr.prune(net, batches((5,)), to=pr.Budget(macs=0.5), epochs=0)
    inner, net[2] = net[2], torch.compile(net[2], backend="eager")
    small, _ = pr.prune(net, batches((5,)), to=pr.Budget(macs=0.5), epochs=0)
    assert type(small[2]) is type(inner)
    assert net[2] is not inner
    x = torch.randn(4, 5)
    assert torch.equal(small(x), found(x))


@pytest.mark.skipif(torch.__version__ < (2, 8), reason="torch 2.7 captures no network that keeps tensors in attributes")
def test_heads_of_train_mode_are_named_and_what_a_forward_left_is_no_hindrance() -> None:
    def loss(net: nn.Module, batch: Any) -> Tensor:
        answer = net(batch[0])
        return sum(nn.functional.cross_entropy(one, batch[1]) for one in (answer if net.training else [answer]))  # type: ignore[return-value]

    net, found = seeded(Auxiliary), batches((5,))
    loss(net, found[0])

    class Never:
        def look(self, gated: GatedCopy, batches: Any, loss: Any) -> Tensor:
            raise AssertionError("refused before anything is searched")

    with pytest.raises(ValueError, match="'aux' runs there, and not in eval mode, and reads units that were cut"):
        pr.prune(net, found, loss, to=pr.Budget(macs=0.5), epochs=1, search=Search(importance=Never()))
    small, _ = pr.prune(net, found, loss, to=pr.Budget(macs=0.5), epochs=0)
    assert small.front.out_features < 24
    small, pruned = pr.prune(net, found, loss, to=pr.Budget(macs=0.5), epochs=1, at="units:!front")
    assert small.front.out_features == 24
    assert pruned.training.steps == 4
    assert net.seen[0].grad_fn is None


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (lambda: nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(5, 8)), nn.Linear(8, 3)), pr.CaptureError, "remove_weight_norm"),
        (lambda: torch.jit.trace(mlp(), torch.randn(2, 5)), ValueError, "hand over the nn.Module that it was made from"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_networks_that_cannot_be_copied_are_refused_in_words(made: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        pr.prune(made(), batches((5,)), to=pr.Budget(macs=0.5))


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file: name a folder"):
        pr.prune(seeded(mlp), batches((5,)), to=pr.Budget(macs=0.5), folder=tmp_path / "state")


def test_a_share_of_nothing_and_a_loss_without_a_graph_are_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"of what\? .*pr.Budget\(macs=0.5\)"):
        pr.prune(seeded(mlp), batches((5,)), to=0.5)  # type: ignore[call-overload]
    for wrong in ({"macs": 0.5}, [0.5], "macs=0.5"):
        with pytest.raises(TypeError, match="takes a Budget, or several in a list"):
            pr.prune(seeded(mlp), batches((5,)), to=wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"batches has to be an iterable.*call it: batches=batches\(\)"):
        pr.prune(seeded(mlp), lambda: batches((5,)), to=pr.Budget(macs=0.5))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"returned a float; return the tensor itself, without .item\(\)"):
        pr.prune(seeded(mlp), batches((5,)), lambda net, x: float(net(x[0]).sum()), to=pr.Budget(macs=0.5))


def test_units_that_are_dead_already_count_as_gone() -> None:
    net = nn.Sequential(nn.Linear(72, 40), nn.ReLU(), nn.Linear(40, 4)).double()
    with torch.no_grad():  # of large weights, and unread
        net[0].weight[::2] *= 10  # type: ignore[index]
        net[2].weight[:, ::2] = 0  # type: ignore[index]
    found = [(x.double().flatten(1), y) for x, y in batches((2, 6, 6), count=2)]
    search = Search(importance=Magnitude(), rounds=1, repair=False)
    small, pruned = pr.prune(net, found, to=pr.Budget(params=0.3), epochs=0, search=search)
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters())
    assert left == pytest.approx(pruned.shares["parameters"])
    assert 0.27 < left <= 0.3
