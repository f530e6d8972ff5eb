"""Small networks for tests: the shapes that matter, in milliseconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Chain(nn.Module):
    """Convolution, BatchNorm, pooling, convolution without norm, flatten, two dense layers. Input (B, 2, 8, 8)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, width + 2, 3)
        self.fc1 = nn.Linear((width + 2) * 4, 10)
        self.fc2 = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3)."""
        x = self.pool(torch.relu(self.norm1(self.conv1(x))))
        x = torch.relu(self.conv2(x)).flatten(1)
        logits: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return logits


class ModuleChain(Chain):
    """`Chain` with its activations as modules, and a norm in front of the last hidden one."""

    def __init__(self, width: int = 6) -> None:
        super().__init__(width)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.norm2 = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3)."""
        x = self.pool(self.relu1(self.norm1(self.conv1(x))))
        x = self.relu2(self.conv2(x)).flatten(1)
        logits: Tensor = self.fc2(self.relu3(self.norm2(self.fc1(x))))
        return logits


class PackedChain(Chain):
    """`Chain` whose pixels attend to each other and are then read by a recurrent cell, in two steps: packed weights."""

    def __init__(self, width: int = 6) -> None:
        super().__init__(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.cell = nn.GRUCell(width, 8)
        self.fc1, self.fc2 = nn.Linear(8, 10), nn.Linear(10, 3)
        del self.conv2

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3)."""
        x = self.pool(torch.relu(self.norm1(self.conv1(x)))).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        state = self.cell(x.mean(1), self.cell(x[:, 0]))
        logits: Tensor = self.fc2(torch.relu(self.fc1(state)))
        return logits


def chain_batch(size: int = 16, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A batch for `Chain`: inputs (size, 2, 8, 8) and learnable labels in {0, 1, 2}."""
    x = torch.randn(size, 2, 8, 8, dtype=dtype)
    return x, x.flatten(1)[:, :3].argmax(1)
