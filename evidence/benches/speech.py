"""Speech that anyone can make again: sentences spoken by eSpeak NG in many voices (package espeakng-loader), at 16 kHz."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

RATE = 16_000
_CHUNK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """eSpeak NG in this process.

    Args:
        folder: of the package espeakng-loader.
    """

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        self._heard: list[Any] = []
        self._callback = _CHUNK(self._hear)
        self.rate = self._library.espeak_Initialize(1, 0, str(folder).encode(), 0)
        if self.rate <= 0:
            raise RuntimeError(f"eSpeak NG does not begin with the data in {folder}")
        self._library.espeak_SetSynthCallback(self._callback)
        self.voices = sorted(
            one.name for one in (folder / "espeak-ng-data" / "voices" / "!v").iterdir() if " " not in one.name
        )

    def _hear(self, chunk: Any, count: int, _events: Any) -> int:
        if chunk and count > 0:
            self._heard.append(np.ctypeslib.as_array(chunk, (count,)).copy())
        return 0

    def say(self, text: str, voice: str) -> Tensor:
        """(samples,) at 16 kHz, of length one in the mean square."""
        self._heard.clear()
        self._library.espeak_SetVoiceByName(f"en-us+{voice}".encode())
        told = text.encode()
        self._library.espeak_Synth(told, len(told) + 1, 0, 0, 0, 1, None, None)
        self._library.espeak_Synchronize()
        sound = torch.from_numpy(np.concatenate(self._heard).astype(np.float32))
        even = F.interpolate(sound[None, None], scale_factor=RATE / self.rate, mode="linear")[0, 0]
        return even / even.square().mean().sqrt().clamp_min(1e-9)


@functools.cache
def filters(channels: int = 40, points: int = 400) -> Tensor:
    """(channels, points / 2 + 1) triangles on Slaney's mel scale, of equal area, as librosa makes them."""
    step, log_from = 200 / 3, 1000.0
    ratio = np.log(6.4) / 27

    def mel(hertz: Any) -> Any:
        return np.where(
            hertz >= log_from, log_from / step + np.log(np.maximum(hertz, 1e-9) / log_from) / ratio, hertz / step
        )

    def back(mels: Any) -> Any:
        return np.where(mels >= log_from / step, log_from * np.exp(ratio * (mels - log_from / step)), step * mels)

    edges = back(np.linspace(0, float(mel(RATE / 2)), channels + 2))
    at = np.linspace(0, RATE / 2, points // 2 + 1)
    rise = (at - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - at) / np.diff(edges)[1:, None]
    area = 2 / (edges[2:] - edges[:-2])
    return torch.from_numpy(np.maximum(0, np.minimum(rise, fall)) * area[:, None]).float()


def mels(sound: Tensor) -> Tensor:
    """(frames, 40) power in mel bands every 10 ms, from 25 ms each."""
    window = torch.hann_window(400)
    power = torch.stft(0.03 * sound, 400, 160, window=window, return_complex=True, pad_mode="constant").abs().square()
    return (filters() @ power).T.contiguous()


def frames(sound: Tensor) -> Tensor:
    """(frames, 1024) of the sound every 10 ms, each of mean 0 and variance 1."""
    parts = sound.unfold(0, 1024, 160)
    parts = parts - parts.mean(1, keepdim=True)
    return parts / parts.std(1, keepdim=True).clamp_min(1e-10)
