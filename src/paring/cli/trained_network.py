"""A trained network on disk: a run's folder, a .safetensors file, or a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from paring.cli.command import CommandError
from paring.cli.experiment import RESULT, SMALL
from paring.cli.reading import read_result, read_validation
from paring.core import FileError
from paring.core.unwrap import bare_names
from paring.data import Dataset
from paring.files import Shards
from paring.files import load as load_net
from paring.models import build


def given(what: Path) -> tuple[dict[str, Any] | None, Shards]:
    """The result of a run, if it is one, and the tensors."""
    if not what.exists():
        raise CommandError(f"{what}: there is no such file or folder")
    if what.is_file():
        return None, Shards([what])
    if (what / SMALL).exists():
        return _row(what), Shards([what / SMALL])
    found = sorted(what.glob("*.safetensors"))
    if not found:
        raise CommandError(f"{what} holds neither a finished run ({SMALL}) nor .safetensors files")
    return None, Shards(found)


def _row(folder: Path) -> dict[str, Any] | None:
    """The result of a run, with the number of examples it set aside."""
    row = read_result(folder / RESULT)
    return row if row is None else row | {"validation": read_validation(folder / "config.json")}


def network_of(what: Path, model: str, data: Dataset, shards: Shards) -> nn.Module:
    """The trained network."""

    def factory() -> nn.Module:
        return build(model, shape=data.shape, classes=data.classes)

    if shards.manifest is not None:
        try:
            return load_net(factory, what / SMALL if what.is_dir() else what)
        except FileError as error:
            raise CommandError(str(error)) from error
    net = factory()
    names, bare = net.state_dict().keys(), bare_names(shards)
    if shards.keys() == names or set(bare.values()) != names:
        bare = {name: name for name in shards}
    try:
        net.load_state_dict({there: shards[name] for name, there in bare.items()})
    except RuntimeError as error:
        raise CommandError(f"{what} does not fit {model}: {error}") from error
    return net
