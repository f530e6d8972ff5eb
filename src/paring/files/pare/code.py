"""How a tensor is written, as the header of a file says it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from paring.files.pare import levels
from paring.files.pare.classes import CLASSES
from paring.files.pare.error import PareError
from paring.files.pare.groups import OFFSETS, ROUNDINGS, Form
from paring.files.pare.levels import MOST_VALUES
from paring.files.pare.planes import Layout

Kind = Literal["raw", "planes", "sparse", "table", "mixed"]
DEEPEST = 2  # scales of groups may be in groups themselves, and theirs


@dataclass(frozen=True)
class Grouped:
    """How the groups of a tensor are written.

    Attributes:
        form: of their entries.
        scales: how the scales are written.
        shifts: how the offsets are written; None without offsets.
    """

    form: Form
    scales: Code
    shifts: Code | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON; what has its default is left out."""
        default = asdict(Form(0, "float32"))
        found = {k: v for k, v in asdict(self.form).items() if v != default[k]}
        found["scales"] = self.scales.plain()
        return found | ({} if self.shifts is None else {"shifts": self.shifts.plain()})

    @classmethod
    def read(cls, given: dict[str, Any], itemsize: int, deep: int) -> Grouped:
        """From JSON.

        Raises:
            PareError: the description makes no sense.
        """
        known = {"size": int, "rounding": str, "offsets": str, "listed": bool, "scales": dict, "shifts": dict}
        if deep >= DEEPEST or any(type(v) is not known.get(k) for k, v in given.items()) or "scales" not in given:
            raise PareError(f"the groups of a tensor cannot be read: {str(given)[:100]}")
        own: dict[str, Any] = {k: v for k, v in given.items() if k not in ("scales", "shifts")}
        form = Form(**{"size": 0, "rounding": "float32", **own})
        right = (
            2 <= form.size < 1 << 40
            and form.rounding in ROUNDINGS
            and form.offsets in OFFSETS
            and bool(form.offsets) == ("shifts" in given)
            and not (form.listed and form.offsets == "shift")
            and (itemsize == 4 or (itemsize == 2 and form.rounding != "float32"))
        )
        nested = [Code.read(given[k], 4, deep + 1) for k in ("scales", "shifts") if k in given] if right else []
        if not nested or any(code.kind not in ("raw", "planes", "table") for code in nested):
            raise PareError(f"the groups of a tensor make no sense: {str(given)[:100]}")
        return cls(form, *nested)


@dataclass(frozen=True)
class Code:
    """How one tensor is written.

    Attributes:
        kind: see the module's docstring.
        levels: how the values are given: "table", "grid", "rows" or "groups".
        values: number of different values.
        half: values are stored as float16, the entries are float32.
        static: the frequencies are stored; otherwise they adapt.
        axis: rows (0) or columns (1) fall into classes, or are the steps of the mixed code.
        classes: number of classes.
        planes: how the byte planes are coded, lowest byte first (`planes.Layout`).
        turned, moved: as in `planes.Layout`.
        groups: of levels in groups.
    """

    kind: Kind
    levels: levels.Kind = "table"
    values: int = 0
    half: bool = False
    static: bool = False
    axis: int = 0
    classes: int = 1
    planes: tuple[int, ...] = ()
    turned: bool = False
    moved: int = 0
    groups: Grouped | None = None

    @property
    def layout(self) -> Layout:
        """How the entries are taken apart."""
        return Layout(self.planes, self.turned, self.moved)

    def plain(self) -> dict[str, Any]:
        """As JSON; what has its default is left out."""
        default = Code(self.kind)
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        found = {"kind": self.kind} | {k: v for k, v in own.items() if v != getattr(default, k)}
        found |= {"planes": list(self.planes)} if self.planes else {}
        return found | ({"groups": self.groups.plain()} if self.groups else {})

    @classmethod
    def read(cls, given: Any, itemsize: int, deep: int = 0) -> Code:
        """From JSON.

        Args:
            given: what was read.
            itemsize: bytes of an entry.
            deep: how many tensors this one tells the scales of.

        Raises:
            PareError: the description makes no sense.
        """
        known = {"kind": str, "levels": str, "values": int, "half": bool, "static": bool, "axis": int, "classes": int}
        types = known | {"planes": list, "turned": bool, "moved": int, "groups": dict}
        if not isinstance(given, dict) or any(type(v) is not types.get(k) for k, v in given.items()):
            raise PareError(f"the code of a tensor cannot be read: {str(given)[:100]}")
        listed = tuple(int(p) if type(p) is bool else p for p in given.get("planes", ()))  # true and false in version 1
        groups = Grouped.read(given["groups"], itemsize, deep) if "groups" in given else None
        found = cls(**{**given, "planes": listed, "groups": groups})
        width = 2 if found.half else itemsize
        valued = (
            1 <= found.values <= MOST_VALUES
            and found.axis in (0, 1)
            and (found.levels in ("table", "groups") or (found.levels in ("grid", "rows") and itemsize == 4))
            and (found.levels == "groups") == (groups is not None)
            and not (found.half and groups)
            and found.layout == Layout()
        )
        apart = found.layout.fits(width)
        bare = cls(found.kind, half=found.half, planes=found.planes, turned=found.turned, moved=found.moved)
        right = {
            "raw": found == cls("raw", half=found.half),
            "planes": apart and bool(found.planes) and found == bare,
            "sparse": apart and found.axis in (0, 1) and found == replace(bare, axis=found.axis),
            "table": valued and 1 <= found.classes <= max(CLASSES),
            "mixed": valued and found.values > 1 and found.classes == 1 and not found.static,
        }
        if not right.get(found.kind, False) or (found.half and itemsize != 4):
            raise PareError(f"the code of a tensor makes no sense: {str(given)[:100]}")
        return found
