"""Quantities in words."""


def quantity(amount: float, unit: str) -> str:
    """Write an amount with three digits and a prefix.

    >>> quantity(23_800_000_000, "B")
    '23.8 GB'
    """
    scales = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))
    prefix, size = next(((p, s) for p, s in scales if amount >= 0.9995 * s), ("k", 1e3))
    return f"{amount / size:.3g} {prefix}{unit}"


def duration(seconds: float) -> str:
    """Write seconds as seconds, minutes or hours.

    >>> duration(1.25), duration(95), duration(600), duration(7200)
    ('1.2 s', '95 s', '10 min', '2.0 h')
    """
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
