"""Numbers as a report shows them."""

from collections.abc import Sequence


def number(value: float, sign: bool = False, digits: int = 3) -> str:
    """Three decimals, as AUROC is usually given; a true minus, so that signs line up."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def span(low: float, high: float, sign: bool = False, digits: int = 3) -> str:
    """An interval: 0.912 to 0.951."""
    return f"{number(low, sign, digits)} to {number(high, sign, digits)}"


def p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_equals(value: float) -> str:
    """< 0.001, or = 0.034: after "p" in a sentence."""
    return p(value) if value < 0.001 else f"= {p(value)}"


def share(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def percent(part: float) -> str:
    """In whole percent; what is neither none nor all is never rounded to it."""
    if 0 < part < 0.01:
        return "< 1%"
    return "> 99%" if 0.99 < part < 1 else f"{part:.0%}"


def count(n: float) -> str:
    return f"{n:,.0f}"


def because(reason: str) -> str:
    return reason if reason.startswith("n/a") else f"n/a, because {reason}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """a, b and c"""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
