"""Tensors in groups with scales: what known quantisers leave is found, and takes what its levels and scales take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from paring.files import File, PareError, write
from paring.files.pare import dynamic, forms, groups
from paring.files.pare.code import Code, Grouped
from paring.files.pare.dictionary import DICTIONARY
from paring.files.pare.groups import Form
from tests.files import quantisers
from tests.reference import pare_reader

Quantiser = Callable[[Tensor, int, torch.dtype], Tensor]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WEIGHTS = torch.randn(96, 512, generator=torch.Generator().manual_seed(0)) * 0.05


def through(tensor: Tensor, path: Path) -> tuple[Code, float]:
    """Write and read; the code of its only piece, and bits of the file for each entry."""
    write(path, [("a", tensor)], {})
    file = File(path)
    ((_, found),) = file.tensors()
    assert found.dtype == tensor.dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))
    ((code,),) = (entry.codes for entry in file.entries)
    return code, 8 * file.size / tensor.numel()


def entropy(levels: Tensor) -> float:
    counts = levels.flatten().unique(return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * share.log2()).sum())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("quantise", "size", "offsets"),
    [
        (quantisers.symmetric, 16, ("",)),
        (quantisers.symmetric, 32, ("",)),
        (quantisers.symmetric, 256, ("",)),
        (quantisers.with_zero_points, 32, ("", "shift")),
        (quantisers.with_zero_points, 128, ("", "shift")),
        (quantisers.tinygemm, 32, ("add",)),
        (quantisers.tinygemm, 128, ("add",)),
        (quantisers.nf4, 64, ("",)),
        (quantisers.nf4_narrow, 64, ("",)),
        (quantisers.q4_0, 32, ("",)),
        (quantisers.q4_1, 32, ("add", "fused")),
        (quantisers.q8_0, 32, ("",)),
        (quantisers.doubly, 16, ("",)),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_groups_of_known_quantisers_are_found(
    quantise: Quantiser, size: int, offsets: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    code, bits = through(quantise(WEIGHTS, size, dtype) + 0.0, tmp_path / "a")
    assert code.levels == "groups"
    assert code.groups is not None
    assert code.groups.form.size == size
    assert code.groups.form.offsets in offsets
    scale = 32 if dtype == torch.float32 else 16
    levels = 8 if quantise is quantisers.q8_0 else 4
    assert bits < levels + (2 if code.groups.form.offsets else 1) * scale / size + 0.1


def test_four_bits_in_groups_of_32_take_their_entropy(tmp_path: Path) -> None:
    rows = WEIGHTS.reshape(-1, 32)
    scale = (rows.abs().amax(1, keepdim=True) / 7).bfloat16().float()
    levels = (rows / scale).round()
    code, bits = through((levels * scale).reshape(WEIGHTS.shape) + 0.0, tmp_path / "a")
    assert code.groups is not None
    assert bits < entropy(levels) + 16 / 32 + 0.05
    assert bits < 4.1


def test_scales_in_groups_are_found_again(tmp_path: Path) -> None:
    """Six bits for each group of 16 and a float16 number for each 256, not a float for each group."""
    many = torch.randn(512, 512, generator=torch.Generator().manual_seed(1)) * 0.05
    code, bits = through(quantisers.doubly(many, 16, torch.float32) + 0.0, tmp_path / "a")
    assert code.groups is not None
    assert code.groups.scales.levels == "groups"
    assert bits < 4 + 6 / 16 + 16 / 256


def test_scales_of_double_quantisation_take_eight_bits(tmp_path: Path) -> None:
    many = torch.randn(512, 1024, generator=torch.Generator().manual_seed(1)) * 0.05
    plain = through(quantisers.nf4(many, 64, torch.float32) + 0.0, tmp_path / "a")[1]
    code, bits = through(quantisers.nf4_doubly(many, 64, torch.float32) + 0.0, tmp_path / "a")
    assert code.groups is not None
    nested = code.groups.scales.groups
    assert nested is not None
    assert nested.form == Form(256, "float32", "add", listed=True)
    assert bits < plain - (26 - 8) / 64 + 8 * 4 * 256 / many.numel() + 0.05


def test_the_dynamic_numbers_are_256_different_ones() -> None:
    found = dynamic.dynamic_numbers()
    assert len(set(found.tolist())) == 256
    assert (np.diff(found) > 0).all()
    assert found[127] == 0
    assert found[255] == 1
    assert np.allclose(found[[126, 128]], [-0.55e-6, 0.55e-6], rtol=1e-6)
    assert abs(found[0] + 1 - 0.9 / 128) < 1e-6
    assert np.array_equal(found[:127], -found[254:127:-1])


def test_groups_of_odd_sizes_that_divide_a_row(tmp_path: Path) -> None:
    weights = torch.randn(60, 120, generator=torch.Generator().manual_seed(0))
    for size in (24, 40, 120):
        code, _ = through(quantisers.symmetric(weights, size, torch.float16) + 0.0, tmp_path / "a")
        assert code.groups is not None
        assert code.groups.form.size == size


def test_integer_offsets_pay_where_groups_lie_apart(tmp_path: Path) -> None:
    """(q - z) s with offsets far from each other: four bits and not the entropy of all differences."""
    generator = torch.Generator().manual_seed(0)
    level = torch.randint(0, 4, (64, 8, 64), generator=generator)
    zero = torch.randint(-100, 100, (64, 8, 1), generator=generator)
    scale = torch.rand(64, 8, 1, generator=generator) + 0.1
    code, bits = through(((level - zero) * scale).reshape(64, 512) + 0.0, tmp_path / "a")
    assert code.groups is not None
    assert code.groups.form.offsets in ("shift", "add")
    assert bits < 2 + (32 + 32) / 64 + 0.1


def test_rows_of_zeros_and_constant_groups(tmp_path: Path) -> None:
    for quantise in (quantisers.symmetric, quantisers.q4_1):
        tensor = quantise(WEIGHTS, 32, torch.float32) + 0.0
        tensor[3] = 0
        tensor[5, :32] = 0.125
        code, _ = through(tensor, tmp_path / "a")
        assert code.levels == "groups"


def test_one_entry_that_is_off_is_not_rounded(tmp_path: Path) -> None:
    for off in (0.0123, float("nan"), float("inf"), -0.0):
        tensor = quantisers.symmetric(WEIGHTS, 32, torch.float32) + 0.0
        tensor[40, 7] = off
        through(tensor, tmp_path / "a")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_nobody_quantised_has_no_groups(dtype: torch.dtype, tmp_path: Path) -> None:
    assert through(WEIGHTS.to(dtype), tmp_path / "a")[0].kind == "planes"
    pruned = WEIGHTS.to(dtype) * (WEIGHTS.abs() > 0.08) + 0.0
    assert through(pruned.to(dtype), tmp_path / "a")[0].levels != "groups"


def test_large_tensors_keep_what_their_first_piece_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paring.files.pare import container

    monkeypatch.setattr(container, "PIECE", 1 << 16)
    tensor = quantisers.nf4(WEIGHTS, 64, torch.float32) + 0.0
    write(tmp_path / "a", [("a", tensor)], {})
    (entry,) = File(tmp_path / "a").entries
    assert len(entry.codes) > 2
    assert {code.levels for code in entry.codes} == {"groups"}
    assert torch.equal(dict(File(tmp_path / "a").tensors())["a"], tensor)


def test_the_plain_reader_finds_what_was_written(tmp_path: Path) -> None:
    some = WEIGHTS[:8]
    tensors = {
        f"{quantise.__name__} {dtype}": quantise(some, size, dtype) + 0.0
        for dtype in DTYPES
        for quantise, size in (
            (quantisers.symmetric, 32),
            (quantisers.tinygemm, 64),
            (quantisers.nf4, 64),
            (quantisers.q4_1, 32),
        )
    }
    lone = torch.randint(0, 4, (64, 64)) - torch.randint(-100, 100, (64, 1))
    tensors["shift"] = lone * (torch.rand(64, 1) + 0.1).bfloat16().float()
    tensors["wide"] = quantisers.symmetric(some, 32, torch.bfloat16).float() + 0.0
    write(tmp_path / "a", tensors.items(), {})
    found, _ = pare_reader.read((tmp_path / "a").read_bytes(), DICTIONARY)
    codes = {entry.name: entry.codes[0] for entry in File(tmp_path / "a").entries}
    assert sum(code.levels == "groups" for code in codes.values()) > 10
    for name, tensor in tensors.items():
        bits = tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16).flatten().tolist()
        assert [one % (1 << 8 * tensor.element_size()) for one in bits] == found[name][1], name


def test_rounding_is_that_of_torch() -> None:
    values = torch.cat([torch.randn(10_000), torch.tensor([1.00390625, 1.01171875, 65520.0, 1e-7, 0.0, -0.0])])
    assert torch.equal(torch.from_numpy(groups.rounded(values.numpy(), "bfloat16")), values.bfloat16().float())
    assert torch.equal(torch.from_numpy(groups.rounded(values.numpy(), "float16")), values.half().float())


@pytest.mark.parametrize("rounding", groups.ROUNDINGS)
def test_bounds_are_what_is_rounded_to_a_number(rounding: groups.Rounding) -> None:
    values = groups.rounded(np.random.default_rng(0).normal(size=500).astype(np.float32), rounding)
    width = 4 if rounding == "float32" else 2
    middle, low, high = forms.bounds(groups.patterns(values, rounding, width), rounding)
    assert np.array_equal(middle, values)
    assert (low < middle).all()
    assert (middle < high).all()
    if rounding != "float32":  # float32 numbers between the ends tell
        assert np.array_equal(groups.rounded((0.999 * high + 0.001 * middle).astype(np.float32), rounding), values)
        assert (groups.rounded((high + 0.01 * (high - middle)).astype(np.float32), rounding) > values).all()
        assert (groups.rounded((low - 0.01 * (middle - low)).astype(np.float32), rounding) < values).all()


@pytest.mark.parametrize(
    "change",
    [
        {"size": 1},
        {"size": -4},
        {"size": True},
        {"size": 1 << 40},
        {"rounding": "int4"},
        {"offsets": "add"},
        {"offsets": "sideways"},
        {"listed": 1},
        {"scales": None},
        {"scales": {"kind": "mixed", "values": 3}},
        {"scales": {"kind": "sparse", "planes": [0, 0, 0, 1]}},
        {"shifts": {"kind": "raw"}},
        {"more": 1},
    ],
    ids=str,
)
def test_descriptions_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    good = {"size": 32, "scales": {"kind": "raw"}}
    told = {"kind": "table", "levels": "groups", "values": 4, "groups": good}
    assert Code.read(told, 4).groups == Grouped(Form(32, "float32"), Code("raw"))
    with pytest.raises(PareError):
        Code.read(told | {"groups": good | change}, 4)


def test_groups_are_for_floats_and_not_too_deep() -> None:
    told: dict[str, object] = {"kind": "raw"}
    for deep in range(4):
        told = {"kind": "table", "levels": "groups", "values": 4, "groups": {"size": 32, "scales": told}}
        if deep < 2:
            assert Code.read(told, 4).groups is not None
        else:
            with pytest.raises(PareError):
                Code.read(told, 4)
    shallow = {"kind": "table", "levels": "groups", "values": 4, "groups": {"size": 32, "scales": {"kind": "raw"}}}
    for width in (1, 2, 8):
        with pytest.raises(PareError):
            Code.read(shallow, width)
    with pytest.raises(PareError):
        Code.read({"kind": "table", "levels": "groups", "values": 4}, 4)
    with pytest.raises(PareError):
        Code.read({"kind": "raw", "groups": {"size": 32, "scales": {"kind": "raw"}}}, 4)
