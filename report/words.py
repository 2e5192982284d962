"""Numbers as people read them."""

from __future__ import annotations

ABSENT = "\N{EN DASH}"
"""Stands where there is no number."""


TIMES = "\N{MULTIPLICATION SIGN}"


def times(ratio: float) -> str:
    """A multiple to two decimals, with a multiplication sign."""
    return f"{ratio:.2f}{TIMES}"


def size(nbytes: float) -> str:
    """Bytes in decimal units with three digits: `538 MB`, `1.08 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(nbytes) < 999.5 or unit == "GB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{three_digits(nbytes)} {unit}"


def count(number: float) -> str:
    """A count with three digits: `134M`, `1.2B`."""
    for unit in ("", "k", "M", "B"):
        if abs(number) < 999.5 or unit == "B":
            break
        number /= 1000
    return f"{number:.0f}" if not unit else f"{three_digits(number)}{unit}"


def percent(share: float) -> str:
    """A share of 1: `9.6%`, `0.012%`; powers of ten for what is smaller."""
    if share == 0:
        return "0"
    return f"{100 * share:.1e}%" if abs(share) < 1e-5 else f"{three_digits(100 * share)}%"


def shortened(text: str, room: int) -> str:
    """A name cut in front, where it is longer than so many letters."""
    return text if len(text) <= room else "\N{HORIZONTAL ELLIPSIS}" + text[1 - room :]


def three_digits(value: float) -> str:
    """Three significant digits without an exponent, unless a number is very small or large."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
