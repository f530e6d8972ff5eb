"""What was read as one text: the same if and only if every bit is."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(value: Any) -> str:
    """SHA-256 over tensors (type, shape, bits), modules (classes, modes, state), and nested plain values."""
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    digest.update(type(value).__name__.encode() + b"(")
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        digest.update(f"{flat.dtype} {list(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(value, nn.Module):
        digest.update(
            repr([(name, type(part).__name__, part.training) for name, part in value.named_modules()]).encode()
        )
        _add(digest, dict(value.state_dict()))
    elif isinstance(value, dict):
        for key in value:
            _add(digest, key)
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        for one in value:
            _add(digest, one)
    else:
        digest.update(value if isinstance(value, bytes) else repr(value).encode("utf-8", "backslashreplace"))
    digest.update(b")")
