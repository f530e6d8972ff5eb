"""The Trainer of Hugging Face transformers: `Trainer(..., callbacks=[ParingCallback(run)])`, and nothing else.

    run = paring.attach(model, method, example, steps=all_steps)
    trainer = Trainer(model, args, train_dataset=..., callbacks=[ParingCallback(run)])
    trainer.train()          # resume_from_checkpoint=True goes on bit for bit
    small = run.finish()

The checkpoints of the Trainer hold all that is needed. The config of a finished model knows only the full sizes, so the small
model goes round by two calls of ours:

    save_pretrained(small, folder, config=model.config)
    small = load_pretrained(BertModel, folder)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "paring.integrations.transformers needs the package transformers: pip install 'paring[transformers]'"
    ) from error

from paring.core import FileError
from paring.core.atomic import atomic
from paring.core.plain_json import JSONError, parsed
from paring.files import load, save
from paring.integrations.lengths import say_length
from paring.run import Run


class ParingCallback(TrainerCallback):
    """Lets a run follow the optimizer that the Trainer makes.

    The values of `Run.on_log` go into the Trainer's log history.

    Args:
        run: what `attach` returned for the Trainer's model.
        every: optimizer steps between two entries of the log history; None makes none.
    """

    def __init__(self, run: Run, *, every: int | None = 100) -> None:
        self._run, self._every = run, every
        self._history: list[dict[str, Any]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Follow the optimizer, whose state is loaded by now."""
        self._run.follow(given["optimizer"])
        say_length(self._run, "Trainer", state.max_steps)
        if self._every is not None and self._history is None:
            self._run.on_log(self._note, every=self._every)
        self._history = state.log_history

    def _note(self, values: dict[str, float], step: int) -> None:
        assert self._history is not None
        self._history.append({**values, "step": step})


WEIGHTS, CONFIG = "paring.safetensors", "config.json"
_HINT = "paring: load this folder with paring.integrations.transformers.load_pretrained"


def save_pretrained(small: nn.Module, folder: str | Path, *, config: Any = None) -> None:
    """Write a finished model of transformers into a folder, with the widths of each layer.

    Args:
        small: what `run.finish()`, `paring.prune` or `paring.compact` gave.
        folder: made if it is not there; a tokenizer's files may lie beside.
        config: of the full model; by default the small one's own, which a model in graph form has not.

    Raises:
        ValueError: no config is known.
        FileError: the small model cannot be saved, as by `paring.save`.
    """
    config = getattr(small, "config", None) if config is None else config
    if not hasattr(config, "to_dict"):
        raise ValueError(
            f"save_pretrained: this {type(small).__name__} has no config of its own; give that of the full model: "
            "save_pretrained(small, folder, config=model.config)"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save(small, folder / WEIGHTS)
    with atomic(folder / CONFIG) as file:  # from_pretrained refuses a model of this type, in words that name the way
        file.write(
            json.dumps({"model_type": _HINT, "paring": json.loads(config.to_json_string(use_diff=False))}).encode()
        )


def load_pretrained(model: type[nn.Module], folder: str | Path, **options: Any) -> nn.Module:
    """The small model from a folder that `save_pretrained` wrote, in eval mode.

    Args:
        model: the class of the full one, such as `transformers.BertModel`.
        folder: where it lies.
        options: what else the class was made with, such as `add_pooling_layer=False`.

    Raises:
        TypeError: `model` is no class of transformers.
        FileError: the folder holds no such model, or one of another class.
    """
    kind = getattr(model, "config_class", None)
    if kind is None:
        raise TypeError(f"load_pretrained needs a model class of transformers, such as BertModel, got {model!r}")
    path = Path(folder) / CONFIG
    try:
        stored = parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, JSONError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    told = stored.get("paring") if isinstance(stored, dict) else None
    if not isinstance(told, dict):
        raise FileError(
            f"{path} was not written by paring's save_pretrained; from_pretrained reads what transformers wrote"
        )
    if told.get("model_type") != kind.model_type:
        raise FileError(f"{path} is of type {told.get('model_type')!r}, and {model.__name__} takes {kind.model_type!r}")
    return load(model(kind.from_dict(told), **options), Path(folder) / WEIGHTS)
