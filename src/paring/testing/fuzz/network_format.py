"""`.safetensors` files that `pr.save` wrote."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from paring.core import FileError
from paring.files import load, save
from paring.files.file import KEY, _digest
from paring.files.shards import CODES
from paring.testing.fuzz.format import Case, Format, Seed
from paring.testing.fuzz.fuzz_nets import examples
from paring.testing.fuzz.mutate import as_text, changed, damaged, everywhere, flipped

FILE = "net.safetensors"


class Network(Format):
    """Files of networks: changed bytes, tables of tensors, and manifests under the digest that fits them."""

    name = "safetensors"
    errors = (FileError,)

    def seeds(self) -> list[Seed]:
        found = []
        for one in examples():
            with tempfile.TemporaryDirectory() as folder:
                save(one.net, Path(folder) / FILE)
                data = (Path(folder) / FILE).read_bytes()
            found.append(Seed(one.name, {FILE: data}, _reading(one.factory), one.weight))
        return found

    def changed(self, seed: Seed, chance: random.Random) -> Case:
        data = seed.files[FILE]
        table, manifest, body = taken_apart(data)
        match chance.randrange(10):
            case 0 | 1:
                return Case({FILE: damaged(data, chance)}, forged=False)
            case 2:
                return Case({FILE: put_together(changed(table, chance), json.dumps(manifest), body)}, forged=False)
            case 3:
                text = json.dumps({"__metadata__": {KEY: json.dumps(manifest)}, **table}).encode()
                return Case({FILE: _framed(damaged(text, chance), body)}, forged=False)
            case 4:
                return Case({FILE: put_together(table, as_text(changed(manifest, chance), chance), body)}, forged=False)
            case 5:
                return Case({FILE: signed(table, manifest, flipped(body, chance), chance)}, forged=True)
            case 6:
                table, manifest = _twice(table, manifest, chance)
            case _:
                manifest = changed(manifest, chance)
        return Case({FILE: signed(table, manifest, body, chance)}, forged=True)

    def planted(self, seed: Seed, every: int = 1) -> Iterator[Case]:
        table, manifest, body = taken_apart(seed.files[FILE])
        chance = random.Random(0)
        for one in everywhere(manifest, every):
            yield Case({FILE: signed(table, one, body, chance)}, forged=True)
        for one in everywhere(table, every):
            yield Case({FILE: signed(one, manifest, body, chance)}, forged=True)


def _twice(table: Any, manifest: Any, chance: random.Random) -> tuple[Any, Any]:
    """Another table, and a manifest that says so."""
    table = changed(table, chance)
    named = {code: name for name, code in CODES.items()}
    told = {
        name: [named.get(str(one.get("dtype")), "?"), one.get("shape")]
        for name, one in table.items()
        if isinstance(one, dict)
    }
    return table, manifest | {"tensors": told}


def _reading(factory: Callable[[], nn.Module]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        return held(load(factory, folder / FILE))

    return read


def held(net: nn.Module) -> object:
    """What a network that was read holds: modules, tensors, and the scripts of a graph form."""
    scripts = getattr(net, "_scripts", {})
    return net, {mode: getattr(script, "source", script) for mode, script in scripts.items()}


def taken_apart(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The table of tensors, the manifest, and the bytes of the tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:end])
    return table, json.loads(table.pop("__metadata__")[KEY]), data[end:]


def put_together(table: Any, text: str, body: bytes) -> bytes:
    """The file of this table, this manifest and these bytes."""
    told = {"__metadata__": {KEY: text}}
    return _framed(json.dumps({**told, **table} if isinstance(table, dict) else table).encode(), body)


def signed(table: Any, manifest: Any, body: bytes, chance: random.Random) -> bytes:
    """The same with the digest that fits, if there are tensors to make it from."""
    if not isinstance(manifest, dict):
        return put_together(table, as_text(manifest, chance), body)
    manifest = {key: value for key, value in manifest.items() if key != "digest"}
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(put_together(table, "", body))
        digest, _ = _digest(json.loads(json.dumps(manifest)), tensors)
    except Exception:  # whatever the reader of safetensors says of it: then no digest fits
        digest = "0" * 64
    return put_together(table, as_text(manifest | {"digest": digest}, chance), body)


def _framed(text: bytes, body: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + body
