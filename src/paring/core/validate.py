"""What the fields of a frozen value may be, said in one way: each names the value, the field and what it was given."""

from __future__ import annotations

from typing import Any


def within(value: Any, interval: str, *names: str, what: str = "must lie") -> None:
    """Refuse fields outside an interval, and what is no number.

    Args:
        value: was just made; its fields are looked at.
        interval: "(0, 1]", say; a round bracket leaves the end out.
        names: of the fields.
        what: the field is, for the message: "a fraction of training,".

    Raises:
        ValueError: a field lies outside.
    """
    for name in names:
        if not contains(interval, getattr(value, name)):
            refuse(value, name, f"{what} in {interval}")


def contains(interval: str, number: float) -> bool:
    """Whether a number lies in an interval such as "(0, 1]" or "[0, inf)"; nan lies in none, nor does what is no number."""
    low, high = map(float, interval[1:-1].split(","))
    try:
        return (low <= number if interval[0] == "[" else low < number) and (
            number <= high if interval[-1] == "]" else number < high
        )
    except TypeError:
        return False


def positive(value: Any, *names: str) -> None:
    """Refuse fields that are no positive, finite number; raises ValueError."""
    for name in names:
        if not contains("(0, inf)", getattr(value, name)):
            refuse(value, name, "must be a positive number")


def not_negative(value: Any, *names: str) -> None:
    """Refuse fields that are negative or not finite; raises ValueError."""
    for name in names:
        if not contains("[0, inf)", getattr(value, name)):
            refuse(value, name, "must be a number that is not negative")


def finite(value: Any, *names: str) -> None:
    """Refuse fields that are not finite; raises ValueError."""
    for name in names:
        if not contains("(-inf, inf)", getattr(value, name)):
            refuse(value, name, "must be a finite number")


def whole_number(value: Any, *names: str, least: int = 1) -> None:
    """Refuse fields that are no number of things, at least `least`; raises ValueError."""
    for name in names:
        number = getattr(value, name)
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            refuse(value, name, f"a whole number, at least {least}")


def one_of(value: Any, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse a field that is none of these words; raises ValueError."""
    if getattr(value, name) not in allowed:
        refuse(value, name, f"choose one of {', '.join(allowed)}")


def refuse(value: Any, name: str, why: str) -> None:
    """Raise the ValueError of a field: `IMP(rate=2): must lie in (0, 1)`."""
    raise ValueError(f"{type(value).__name__}({name}={getattr(value, name)!r}): {why}")


def as_floats(value: Any, *names: str) -> None:
    """Make numbers of a frozen value floats, so that 1 and 1.0 are one setting; None stays."""
    for name in names:
        if getattr(value, name) is not None:
            object.__setattr__(value, name, float(getattr(value, name)))


def as_whole(value: Any, *names: str) -> None:
    """Make 8.0 of a frozen value 8; raises ValueError for what is no whole number of at least 1."""
    for name in names:
        number = getattr(value, name)
        if isinstance(number, bool) or not contains("[1, inf)", number) or number != int(number):
            refuse(value, name, "a whole number, at least 1")
        object.__setattr__(value, name, int(number))
