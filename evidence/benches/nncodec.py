"""NNCodec's arithmetic coder (the CABAC of ISO/IEC 15938-17), run by the Python of an environment of its own.

NNCodec wants numpy 1 and dozens of packages besides; its coder is one compiled module, which is loaded alone, so that

    python -m venv nncodec && nncodec/bin/pip install 'numpy<2' && nncodec/bin/pip install --no-deps nncodec

is enough for `python -m evidence bench codec --nncodec nncodec/bin/python`. It codes the integers of a matrix without loss; the values
that they stand for are not charged. Context parameters are chosen by the encoder, as its own command does by default.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCRIPT = """
import glob, importlib.util, json, sys, sysconfig, time
import numpy as np
found = glob.glob(sysconfig.get_path("platlib") + "/nncodec/extensions/deepCABAC.*")
if not found:
    sys.exit("nncodec is not installed for " + sys.executable)
spec = importlib.util.spec_from_file_location("deepCABAC", found[0])
cabac = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cabac)
levels, repeats = np.load(sys.argv[1]), int(sys.argv[2])
off = (cabac.HdspMode.AlwaysOff, np.zeros(2, dtype=np.int8), 0, 0)
UNARY = 11

def encode():
    coder = cabac.Encoder()
    coder.initCtxModels(UNARY, 1)
    coder.encodeLayer(levels, 0, 0, 0, 0, 0, np.zeros(len(levels), dtype=np.int32), *off)
    return coder.finish()

def decode(data):
    coder, out = cabac.Decoder(), np.zeros_like(levels)
    coder.setStream(data)
    coder.initCtxModels(UNARY)
    coder.decodeLayer(out, 0, 0, 0, 0, *off)
    coder.finish()
    return out

def best(work):
    times = []
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        times.append(time.process_time() - started)
    return result, min(times)

data, encoding = best(encode)
out, decoding = best(lambda: decode(data))
if not np.array_equal(out, levels):
    sys.exit("what NNCodec decoded is not what it encoded")
print(json.dumps({"bytes": len(data.tobytes()), "encode": encoding, "decode": decoding}))
"""


def code(python: Path, levels: NDArray[np.int32], repeats: int) -> dict[str, Any]:
    """Bytes of a matrix of integers and CPU seconds of encoding and decoding, the best of the repeats.

    Args:
        python: an interpreter that has nncodec.
        levels: (rows, columns).
        repeats: of each.

    Raises:
        RuntimeError: the interpreter has no nncodec, or its code does not come back.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "levels.npy"
        np.save(path, levels.astype(np.int32))
        try:
            done = subprocess.run(
                [python, "-c", _SCRIPT, path, str(max(1, repeats))], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise RuntimeError(f"--nncodec {python}: cannot be run: {error}") from error
    if done.returncode:
        raise RuntimeError(f"--nncodec {python}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
