"""Vocabulary rows on request."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import paring as pr


class Config:
    def __init__(self) -> None:
        self.vocab_size = 20


class Words(nn.Module):
    """A table, a body, and scores of all words; tied: by the table itself."""

    def __init__(self, tied: bool, padding: int | None = None) -> None:
        super().__init__()
        self.config, self.vocab_size = Config(), 20
        self.table, self.body = nn.Embedding(20, 6, padding_idx=padding), nn.Linear(6, 6)
        self.scores = nn.Linear(6, 20)
        if tied:
            self.scores.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.scores(self.body(self.table(ids)).tanh())
        return made


DROPPED = [0, 3, 4, 11, 19]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("given", [list, torch.tensor, set])
def test_the_rest_of_the_vocabulary_is_the_same_function(tied: bool, given: type) -> None:
    torch.manual_seed(0)
    net = Words(tied, padding=5).double().eval()
    small, new = pr.drop_rows(net, given(DROPPED), outputs=["scores"])
    assert isinstance(small, Words)
    stay = torch.tensor([i for i in range(20) if i not in DROPPED])
    assert new.dtype == torch.int64
    assert new[stay].tolist() == list(range(15))
    assert new[DROPPED].tolist() == [-1] * 5
    ids = stay[torch.randint(15, (3, 7))]
    torch.testing.assert_close(small(new[ids]), net(ids)[..., stay], rtol=1e-13, atol=1e-13)
    assert (small.table.num_embeddings, small.scores.out_features) == (15, 15)
    assert (small.vocab_size, small.config.vocab_size, net.config.vocab_size) == (15, 15, 20)
    assert small.table.padding_idx == 2
    assert (small.scores.weight is small.table.weight) is tied
    assert net.table.num_embeddings == 20


def test_a_tied_output_layer_follows_by_itself() -> None:
    small, _ = pr.drop_rows(Words(True), [1])
    assert isinstance(small, Words)
    assert small.scores.weight.shape == (19, 6)
    assert small.scores.bias.shape == (19,)


def test_what_cannot_be_dropped_is_said() -> None:
    with pytest.raises(ValueError, match="ids go from -1 to 3"):
        pr.drop_rows(Words(False), [-1, 3])
    with pytest.raises(ValueError, match="ids go from 2 to 20"):
        pr.drop_rows(Words(False), [2, 20])
    with pytest.raises(ValueError, match="all 20 rows of 'table'"):
        pr.drop_rows(Words(False), range(20))
    with pytest.raises(ValueError, match="id 5 is the padding of 'table'"):
        pr.drop_rows(Words(False, padding=5), [5])
    with pytest.raises(ValueError, match=r"not torch.bool"):
        pr.drop_rows(Words(False), torch.zeros(20, dtype=torch.bool))
    with pytest.raises(ValueError, match="it has table"):
        pr.drop_rows(Words(False), [1], table="tabel")
    with pytest.raises(ValueError, match="outputs names 'body'"):
        pr.drop_rows(Words(False), [1], outputs=["body"])
    with pytest.raises(ValueError, match=r"2 embeddings \(0, 1\)"):
        pr.drop_rows(nn.Sequential(nn.Embedding(4, 2), nn.Embedding(4, 2)), [1])
    odd = Words(False)
    odd.norm = nn.Parameter(torch.zeros(1))
    odd.norm = odd.table.weight
    with pytest.raises(ValueError, match="'norm' is the weight of 'table' too, and a Words is no table"):
        pr.drop_rows(odd, [1])


def test_no_rows_change_nothing_and_small_networks_are_loaded(tmp_path: object) -> None:
    net = Words(True).eval()
    small, new = pr.drop_rows(net, [])
    assert torch.equal(new, torch.arange(20))
    ids = torch.arange(10)[None]
    assert torch.equal(small(ids), net(ids))
    small, new = pr.drop_rows(net, DROPPED)
    pr.save(small, f"{tmp_path}/small.safetensors")
    loaded = pr.load(lambda: Words(True), f"{tmp_path}/small.safetensors")
    assert torch.equal(loaded(new[[1, 2]]), small(new[[1, 2]]))
