"""Language models of transformers, as their owners have them: batches with labels, caches on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import paring as pr

transformers = pytest.importorskip("transformers")
SIZES: dict[str, Any] = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.LlamaConfig(**SIZES, **sizes, num_key_value_heads=2, max_position_embeddings=32)
    return transformers.LlamaForCausalLM(config)


def t5() -> Any:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES, **sizes, decoder_start_token_id=0))


def texts() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 50, (3, 4, 10))]


@pytest.mark.parametrize(("make", "at"), [(llama, "units"), (t5, "units:*.wi")])
def test_a_language_model_in_one_call(make: Any, at: Any) -> None:
    torch.manual_seed(0)
    net = make()
    assert net.config.use_cache
    small, pruned = pr.prune(net, texts(), to=pr.Budget(macs=0.8), epochs=1, at=at)
    assert 0.7 < pruned.shares["macs"] <= 0.8
    assert not pruned.notes
    assert net.config.use_cache
    assert small.config.use_cache
    assert torch.isfinite(small(**texts()[0]).loss)


def test_a_small_model_writes_what_the_large_one_does() -> None:
    torch.manual_seed(0)
    net = llama().double().eval()
    block = net.model.layers[0]
    with (
        torch.no_grad()
    ):  # heads 2 and 3, which read one pair of keys and values, and half of the hidden units say nothing
        block.self_attn.o_proj.weight[:, 8:] = 0
        block.mlp.down_proj.weight[:, ::2] = 0
    ids = texts()[0]["input_ids"]
    small, report = pr.compact(net, {"input_ids": ids})
    assert report.form == "module"
    assert small.model.layers[0].self_attn.k_proj.out_features == 4
    assert small.model.layers[0].mlp.up_proj.out_features == 12
    words = {"max_new_tokens": 8, "do_sample": False, "use_cache": True}
    assert torch.equal(small.generate(ids, **words), net.generate(ids, **words))
    torch.testing.assert_close(small(ids).logits, net(ids).logits)


def gpt2(**words: Any) -> Any:
    config = transformers.GPT2Config(**SIZES, n_embd=16, n_layer=1, n_head=4, n_positions=16, **words)
    return transformers.GPT2LMHeadModel(config)


def test_heads_go_and_the_model_stays_its_owners(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = gpt2()
    small, pruned = pr.prune(net, texts(), to=pr.Budget(macs=0.6), epochs=1, at=("heads", "units:*c_fc"))
    assert type(small) is type(net)
    assert "sizes that modules keep were changed" in str(pruned)
    ids = texts()[0]["input_ids"][:, :3]
    words = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    pr.save(small, tmp_path / "small.safetensors")
    again = pr.load(gpt2, tmp_path / "small.safetensors")
    assert torch.equal(again.generate(ids, **words), small.generate(ids, **words))


class Counting(torch.nn.Module):
    """Answers a loss for labels, as models of transformers do; the number of its heads stands in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], 3, 4, 2).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 8)
        logits = self.out(y.mean(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_graph_takes_what_the_loss_gives_it() -> None:
    torch.manual_seed(0)
    found = [{"x": torch.randn(4, 5, 8), "labels": torch.randint(3, (4,))} for _ in range(3)]
    small, pruned = pr.prune(Counting(), found, to=pr.Budget(macs=0.8), epochs=1)
    assert pruned.removal.form == "graph"
    assert "this form takes what the loss gives it, no less: x, labels" in str(pruned)
    assert torch.isfinite(small(**found[0])["loss"])
