"""Numbers and names as people read them."""

from __future__ import annotations


def few_digits(value: float) -> str:
    """Two significant digits: 0.012, 2.1e-07, 0."""
    return f"{value:.2g}"


def amount(value: float) -> str:
    """Milliseconds or megabytes: 2411, 58.3, 0.42."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(value: float) -> str:
    """A share in percent. What is not all is never rounded to 100 %."""
    text = f"{100 * value:.1f}"
    return f"{100 * value:.4f} %" if text == "100.0" and value < 1 else f"{text} %"


def share(value: float, count: int) -> str:
    """A share of a count: ``199 of 200 (99.5 %)``."""
    return f"{round(value * count)} of {count} ({percent(value)})"


def size(count: float) -> str:
    """Bytes: 312.4 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def printable(text: str) -> str:
    """The text with everything that cannot be seen, or that turns the writing direction, spelled as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
