"""Language models of transformers, as their owners have them: batches with labels, caches on."""

from __future__ import annotations

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


@pytest.mark.parametrize("make", [llama, t5])
def test_a_language_model_in_one_call(make: Any) -> None:
    torch.manual_seed(0)
    net = make()
    assert net.config.use_cache
    small, pruned = pr.prune(net, texts(), to=pr.Budget(macs=0.7), epochs=1)
    assert 0.6 < pruned.shares["macs"] <= 0.7
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
