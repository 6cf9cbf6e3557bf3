"""A search that tries few sizes, for tests of what is done with circuits once they are found.

It doubles the size from trial to trial in place of a step of a tenth, and measures fewer circuits
beside the one it found and less text: a quarter of the forward runs. What it finds is a circuit all
the same, with all that is said of one. How circuits are found is tested with the search as it is.
"""

from __future__ import annotations

COARSE = {
    "circuits.discovery.search.EVERY_UP_TO": 1,
    "circuits.discovery.search.N_CURVE": 4,
    "circuits.discovery.evidence.N_RANDOM": 1,
    "circuits.comparison.transfer.N_RANDOM": 1,
    "circuits.comparison.gather.N_SEQUENCES": 8,
}
