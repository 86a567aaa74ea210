"""Numbers and tables as text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

PREFIXES = ('', 'k', 'M', 'G', 'T', 'P', 'E')


def spread(values: Sequence[float | None]) -> str:
    """'12.3 ± 0.4': mean and sample deviation; the value alone where there is one; '–' where one is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return '–'
    digits = _digits(known)
    text = f'{statistics.mean(known):.{digits}f}'
    return text + (f' ± {statistics.stdev(known):.{digits}f}' if len(known) > 1 else '')


def number(value: float | None) -> str:
    """A metric with as many digits as :func:`spread` gives it."""
    return '–' if value is None else f'{value:.{_digits([value])}f}'


def amount(value: float | None, unit: str = '') -> str:
    """A number with three digits and the unit's prefix: 1234567 -> '1.23 M'; '–' where it is not known."""
    if value is None:
        return '–'
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    whole = isinstance(value, int) and not power
    digits = 0 if whole else max(2 - _exponent(value), 0)
    return f'{value:.{digits}f} {PREFIXES[power]}{unit}'.rstrip()


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """A Markdown table whose columns stand below each other; those not in ``left`` flush right."""
    cells = [[cell.replace('|', '\\|') for cell in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(head))]
    rule = ['-' * w if k in left else '-' * (w - 1) + ':' for k, w in enumerate(widths)]
    padded = [
        [c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths))]
        for row in cells
    ]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [padded[0], rule, *padded[1:]])


def _digits(values: Sequence[float]) -> int:
    """Percentages get one digit, what lies below 1.5 three."""
    return 3 if max(map(abs, values)) < 1.5 else 1


def _exponent(value: float) -> int:
    """Of ten: 0 for 1 … 9.99, 1 for 10 … 99.9, -1 for 0.1 … 0.999."""
    return int(f'{value:.2e}'.partition('e')[2])  # of what is left when rounded to three digits
