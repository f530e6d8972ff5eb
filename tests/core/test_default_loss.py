"""The loss where none is given: what it takes, and what it says to the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paring.core.default_loss import cross_entropy


class Says(nn.Module):
    """Answers what it was made with."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_labels_of_any_whole_type(kind: torch.dtype) -> None:
    scores, labels = torch.randn(6, 2, 3), torch.tensor([[0, 1, 1]] * 6)
    found = cross_entropy(Says(scores), (torch.zeros(6), labels.to(kind)))
    assert torch.equal(found, F.cross_entropy(scores, labels))
    last = cross_entropy(Says(scores.transpose(1, 2)), [torch.zeros(6), labels.to(kind)])
    assert torch.allclose(last, found)


WHOLE = torch.ones(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("answer", "batch", "said"),
    [
        (torch.zeros(6, 1), (torch.zeros(6, 2), torch.zeros(6)), r"a tuple of a tensor of float32 \(6, 2\), a tensor of float32"),
        (torch.zeros(6, 4), (torch.zeros(6), torch.ones(6, 4, dtype=torch.int64)), r"scores of shape \(6, 4\) and labels of sha"),
        (torch.zeros(6, 1), (torch.zeros(6), WHOLE), "a score for each class"),
        (torch.zeros(6), (torch.zeros(6), WHOLE), "a label for each example"),
        (torch.tensor(0.0), (torch.zeros(6), WHOLE), "do not fit cross-entropy"),
        (torch.zeros(4), (torch.zeros(6), torch.tensor(1)), r"a single example and no batch.*DataLoader\(dataset"),
        ((torch.zeros(6, 4), None), (torch.zeros(6), WHOLE), r"answers a tuple of a tensor of float32 \(6, 4\), a NoneType"),
        (torch.zeros(6, 4), {"x": torch.zeros(6), "labels": WHOLE}, r"net\(\*\*batch\).*unexpected keyword argument 'labels'"),
        (torch.zeros(6, 4), {"x": torch.zeros(6)}, "answers no loss for a batch with x"),
        (torch.zeros(6, 4), torch.zeros(6), r"a batch here is a tensor of float32 \(6,\)"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_said(answer: Any, batch: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cross_entropy(Says(answer), batch)


def test_an_error_of_the_network_itself_stays() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        cross_entropy(Broken(), {"x": torch.zeros(2)})
