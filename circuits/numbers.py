"""How numbers are written where a person reads them: the same one reads the same everywhere.

Terminal, report, figures and pages write sizes, shares and ratios with these. Files for programs
(CSV, JSON) hold numbers in full.
"""

from __future__ import annotations

import math

_FOUR_DIGITS = 999.95
"""From here on, four digits leave none behind the point."""


def sized(size: float) -> str:
    """Returns a size: to four digits, and whole with thousands apart from 1,000 on.

    "7", "12.67", "22,730"; never with an exponent.
    """
    return f"{size:,.0f}" if abs(size) >= _FOUR_DIGITS else f"{size:.4g}"


def percent(share: float, digits: int = 3) -> str:
    """Returns a share in percent, to three significant digits: "0.561 %", "100 %".

    What is not 0 does not read as 0.
    """
    return f"{100 * share:.{digits}g} %"


def rounded(ratio: float) -> str:
    """Returns a ratio, or an end of its interval, to two significant digits; whole from 100 on.

    "0.80", "1.0", "12", "1,230": a digit that is known is written, 0 too.
    """
    if math.isinf(ratio):
        return "∞"
    return f"{ratio:#.2g}".rstrip(".") if ratio < 99.5 else f"{ratio:,.0f}"
