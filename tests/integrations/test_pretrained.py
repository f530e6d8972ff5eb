"""Small models of transformers go round: saved with the widths of each layer, loaded by one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paring as pr

transformers = pytest.importorskip("transformers")
from paring.integrations.transformers import load_pretrained, save_pretrained  # noqa: E402


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def loss(net: nn.Module, batch: Any) -> Tensor:
    out: Tensor = net(**batch).last_hidden_state
    return (out - batch["input_ids"][..., None] / 40).square().mean()


@pytest.fixture(scope="module")
def small() -> tuple[Any, nn.Module, dict[str, Tensor]]:
    net = bert()
    batches = [{"input_ids": torch.randint(40, (4, 8))} for _ in range(3)]
    made, pruned = pr.prune(net, batches, loss, to=pr.Budget(macs=0.6), epochs=0)
    assert pruned.shares["macs"] <= 0.6
    return net, made, batches[0]


def test_it_goes_round(small: tuple[Any, nn.Module, dict[str, Tensor]], tmp_path: Path) -> None:
    net, made, batch = small
    save_pretrained(made, tmp_path, config=net.config)
    again = load_pretrained(transformers.BertModel, tmp_path, add_pooling_layer=False)
    assert not again.training
    assert torch.equal(again(**batch).last_hidden_state, made(**batch).last_hidden_state)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in net.parameters())


def test_from_pretrained_names_the_way(small: tuple[Any, nn.Module, dict[str, Tensor]], tmp_path: Path) -> None:
    net, made, _ = small
    save_pretrained(made, tmp_path, config=net.config)
    with pytest.raises(ValueError, match="load_pretrained"):
        transformers.AutoModel.from_pretrained(tmp_path)


def test_what_does_not_fit_is_said(small: tuple[Any, nn.Module, dict[str, Tensor]], tmp_path: Path) -> None:
    net, made, _ = small
    with pytest.raises(ValueError, match=r"config=model\.config"):
        save_pretrained(nn.Linear(2, 2), tmp_path)
    with pytest.raises(pr.FileError, match="cannot be read"):
        load_pretrained(transformers.BertModel, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(pr.FileError, match="not written by paring"):
        load_pretrained(transformers.BertModel, tmp_path)
    save_pretrained(made, tmp_path, config=net.config)
    with pytest.raises(pr.FileError, match="'bert', and GPT2Model takes 'gpt2'"):
        load_pretrained(transformers.GPT2Model, tmp_path)
    with pytest.raises(TypeError, match="class of transformers"):
        load_pretrained(nn.Linear, tmp_path)
