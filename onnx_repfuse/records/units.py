"""Numbers as people read them: three digits and an SI unit, the same in messages and reports."""

from __future__ import annotations

__all__ = ["duration", "quantity", "size"]


def quantity(count: int | None) -> str:
    """A count in three digits.

    >>> quantity(1_234_567), quantity(999), quantity(None)
    ('1.23 M', '999', 'unknown')
    """
    return "unknown" if count is None else _scaled(count, ("", " k", " M", " G", " T", " P"))


def size(count: int) -> str:
    """A number of bytes.

    >>> size(33_300_000), size(17)
    ('33.3 MB', '17 B')
    """
    return _scaled(count, (" B", " kB", " MB", " GB", " TB", " PB"))


def _scaled(count: int, units: tuple[str, ...]) -> str:
    """Three digits: 1.23 M, 12.3 M, 123 M. The limits are where rounding would give a fourth."""
    value, unit = float(count), 0
    while abs(value) >= 999.5 and unit + 1 < len(units):
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{count}{units[0]}"
    return f"{_three_digits(value)}{units[unit]}"


def _three_digits(value: float) -> str:
    """A number below 1000.

    >>> _three_digits(1.234), _three_digits(99.96), _three_digits(0.5)
    ('1.23', '100', '0.50')
    """
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """A time.

    >>> duration(0.0321), duration(75.2), duration(0.00025), duration(0)
    ('32.1 ms', '75.2 s', '250 us', '0 s')
    """
    if seconds == 0:
        return "0 s"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 0.9995:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds * 1e9)} ns"
