"""Benchmarks: ratios of times measured side by side in one process, medians, thread count set."""

from __future__ import annotations

from evidence.benches import (
    bits,
    census,
    codec,
    compress_any,
    deployed,
    gates,
    inference,
    lossless,
    pruned_sentences,
    pruned_times,
    removal,
    sweep,
    trained_networks,
    training_speed,
)
from evidence.benches.book import Asked, Bench

BENCHES: dict[str, Bench] = {
    "gates": Bench("what gates cost per training step, against dense", 200, gates.run),
    "removal": Bench("exactness, size and time of removal, against Torch-Pruning and torch-simplify", 3, removal.run),
    "inference": Bench("how much of the saving in MACs is a saving in time", 15, inference.run),
    "bits": Bench("layers and networks of bits against float32, in time and bytes", 30, bits.run),
    "codec": Bench(
        "bits per weight and MB/s of the .pare coder, against zstd, lzma, Huffman and NNCodec", 3, codec.run
    ),
    "lossless": Bench("trained networks as .pare files without loss, against zipnn", 3, lossless.run),
    "compress-any": Bench(
        "trained networks after training: calibrated rounding against int8, int4, GPTQ", 1, compress_any.run
    ),
    "training-speed": Bench("training that shrinks as it goes, against dense", 1, training_speed.run, trains=True),
    "prune": Bench(
        "trained networks made smaller and trained on, against Torch-Pruning and simpler ways",
        1,
        trained_networks.run,
        trains=True,
    ),
    "prune-sentences": Bench(
        "MiniLM as a sentence encoder with part of its MACs, against Torch-Pruning",
        1,
        pruned_sentences.run,
        trains=True,
    ),
    "prune-times": Bench(
        "what the networks of prune take once they are cut, and budgets of latency", 15, pruned_times.run
    ),
    "census": Bench(
        "architectures of timm, transformers, diffusers and others, gated, cut and exported", 1, census.run
    ),
    "deploy": Bench(
        "one network dense, structured, sparse and int8, in three runtimes; what zeros save", 30, deployed.run
    ),
    "sweep": Bench("wall-clock time of a sweep on two workers, against one after another", 1, sweep.run, trains=True),
}

__all__ = ["BENCHES", "Asked", "Bench"]
