"""Numbers as a person reads them: no exponents, and the same number the same everywhere."""

import math

import pytest

from circuits.numbers import percent, rounded, sized


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (7.0, "7"),
        (12.666, "12.67"),
        (999.94, "999.9"),
        (999.96, "1,000"),
        (9029, "9,029"),
        (22_730.4, "22,730"),
        (1e7, "10,000,000"),
        (-12_345.0, "-12,345"),
        (math.nan, "nan"),
    ],
)
def test_a_size_has_four_digits_and_its_thousands_apart(size, text):
    assert sized(size) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (4e-6, "0.0004 %"), (0.00561, "0.561 %"), (0.9, "90 %"), (1.0, "100 %")],
)
def test_a_share_is_in_percent_and_what_is_not_0_does_not_read_as_0(share, text):
    assert percent(share) == text


def test_a_target_near_1_does_not_read_as_100_percent():
    assert percent(0.999, 4) == "99.9 %"
    assert percent(0.9995, 4) == "99.95 %"


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.5678, "0.57"),
        (0.796, "0.80"),
        (2.0, "2.0"),
        (12.0, "12"),
        (99.4, "99"),
        (99.6, "100"),
        (4321.0, "4,321"),
        (math.inf, "∞"),
    ],
)
def test_a_ratio_has_two_digits_or_is_whole(ratio, text):
    assert rounded(ratio) == text
