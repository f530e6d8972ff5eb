"""BERT and GPT-2 of the `transformers` library, tiny and with random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paring.removal import GraphNet, compact

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}


def words(rows: int) -> Tensor:
    return torch.randint(0, 50, (rows, 6), generator=torch.Generator().manual_seed(rows))


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    net = transformers.BertModel(transformers.BertConfig(**SMALL, **sizes, max_position_embeddings=8))
    return net.double().eval()


def gpt2(attention: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 8}
    config = transformers.GPT2Config(**SMALL, **sizes, use_cache=False, attn_implementation=attention)
    return transformers.GPT2LMHeadModel(config).double().eval()


def test_bert() -> None:
    net = bert()
    with torch.no_grad():
        for layer in net.encoder.layer:
            layer.attention.self.value.weight[8:16] = 0  # the second head
            layer.intermediate.dense.weight[::3] = 0
    small, report = compact(net, words(2))
    assert report.form == "module"  # its forward takes the number of heads from the width
    for layer in small.encoder.layer:
        own = layer.attention.self
        assert [m.out_features for m in (own.query, own.key, own.value, layer.intermediate.dense)] == [24, 24, 24, 32]
    old, new = net(words(3)), small(words(3))
    assert torch.allclose(old.pooler_output, new.pooler_output, atol=1e-10)
    with torch.no_grad():
        for layer in net.encoder.layer:
            layer.attention.self.key.weight[::8] = 0  # a pair of each head, with a constant key
            layer.attention.self.value.weight[1::8] = 0
    small, report = compact(net, words(2), verify=False, form="graph")
    for layer in small.encoder.layer:
        own = layer.attention.self
        assert [m.out_features for m in (own.query, own.key, own.value)] == [21, 21, 21]
    new = small(input_ids=words(3))
    assert type(new) is type(old)
    assert torch.allclose(net(words(3)).last_hidden_state, new.last_hidden_state, atol=1e-10)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gpt2(attention: str) -> None:
    net = gpt2(attention)
    with torch.no_grad():
        for block in net.transformer.h:
            _, key, value = block.attn.c_attn.weight.chunk(3, 1)  # (in, out)
            value[:, 8:16], key[:, ::8], value[:, 1::8] = 0, 0, 0
            block.mlp.c_fc.weight[:, ::3] = 0
    small, report = compact(net, words(2), verify=attention == "sdpa", form="auto" if attention == "sdpa" else "graph")
    assert isinstance(small, GraphNet if attention == "eager" else transformers.GPT2LMHeadModel)
    assert not report.rolled_back
    for block in small.transformer.h:
        assert block.attn.c_attn.weight.shape == (32, 63)
        assert block.attn.c_proj.weight.shape == (21, 32)
        assert block.mlp.c_fc.weight.shape == (32, 85)
    assert small.lm_head.weight is small.transformer.wte.weight
    assert torch.allclose(net(words(3)).logits, small(words(3)).logits, atol=1e-10)
    small.train()(words(3)).logits.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in small.parameters())


def test_llama_with_a_cache_that_begins_empty() -> None:
    class Logits(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, *given: Tensor) -> Tensor:  # without the cache, which would hold every key and value
            logits: Tensor = self.net(input_ids=given[0]).logits
            return logits

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24, "max_position_embeddings": 8}
    config = transformers.LlamaConfig(**SMALL, **sizes, num_attention_heads=4, num_key_value_heads=2)
    net = Logits(transformers.LlamaForCausalLM(config).double()).eval()
    layer = net.net.model.layers[0]
    with torch.no_grad():
        layer.self_attn.v_proj.weight[4:] = 0  # the second of two groups
        layer.mlp.up_proj.weight[::3] = 0
    for form in ("auto", "graph"):
        small, report = compact(net, words(2), form=form)
        assert not report.rolled_back
        own = small.net.model.layers[0]
        assert [len(own.self_attn.get_submodule(f"{x}_proj").weight) for x in "qkv"] == [8, 4, 4]
        assert len(own.mlp.gate_proj.weight) == 16
        assert torch.allclose(net(words(3)), small(words(3)), atol=1e-10)


def _killed(net: nn.Module, units: list[int]) -> None:
    """Nothing writes into these units of the residual stream."""
    with torch.no_grad():
        for name, module in net.named_modules():
            leaf = name.rpartition(".")[2]
            if isinstance(module, nn.Embedding):
                module.weight[:, units] = 0
            elif leaf in ("o_proj", "down_proj"):
                module.weight[units] = 0
            elif leaf == "c_proj":
                module.weight[:, units] = 0
                module.bias[units] = 0
            elif "output.dense" in name or ("bert" in name and isinstance(module, nn.LayerNorm)):
                module.weight[units], module.bias[units] = 0, 0


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "GPT2", "Bert"])
def test_units_of_the_residual_stream_go(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    if kind == "GPT2":
        net = gpt2("sdpa")
    elif kind == "Bert":
        config = transformers.BertConfig(**SMALL, **sizes, layer_norm_eps=0.01, max_position_embeddings=8)
        net = transformers.BertForSequenceClassification(config)
    else:
        more = {"num_key_value_heads": 2, "rms_norm_eps": 0.01, "tie_word_embeddings": kind == "Llama"}
        config = getattr(transformers, f"{kind}Config")(**SMALL, **sizes, **more, max_position_embeddings=8)
        net = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    net = net.double().eval()
    _killed(net, [0, 3, 4, 17])
    small, report = compact(net, words(2))
    assert type(small) is type(net)
    assert report.form == "module"
    assert small.get_input_embeddings().embedding_dim == 28
    assert not any(32 in p.shape[-1:] and "norm" in name.lower() for name, p in small.named_parameters())
    exact = 1e-10 if kind in ("GPT2", "Bert") else 1e-5  # the others compute their norms in float32, by name
    assert torch.allclose(net(words(3)).logits, small(words(3)).logits, atol=exact)
    if kind in ("Llama", "GPT2"):
        assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    small.train()(words(3)).logits.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in small.parameters())
