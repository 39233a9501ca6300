"""How many examples a property gets: one table for all tests, and profiles that choose a column of it.

A property says how large its state space is, not a number: nothing for the usual one, `@FEW` for a small space or a
test that touches files and sockets, `@MANY` for a large space that is cheap to look at. `nox -s fuzz`, which sets
`HYPOTHESIS_PROFILE`, looks longer.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Few, usual, many.
_EXAMPLES = {"quick": (25, 200, 2_000), "fuzz": (500, 5_000, 40_000)}

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
"""The one that `conftest` loads."""

for _name, (_few, _usual, _many) in _EXAMPLES.items():
    settings.register_profile(
        _name,
        max_examples=_usual,
        # How long an example takes is a matter of the machine: none may fail a property.
        deadline=None,
        # So is how long drawing takes, of which `too_slow` complains. `data_too_large` is what a long text may be.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        # A failure seen elsewhere can be run again here.
        print_blob=True,
    )

_CHOSEN = settings.get_profile(PROFILE)
_COUNTS = _EXAMPLES.get(PROFILE, _EXAMPLES["quick"])  # for a profile of hypothesis' own
FEW = settings(_CHOSEN, max_examples=_COUNTS[0])
"""For a small state space, or examples that cost much."""
MANY = settings(_CHOSEN, max_examples=_COUNTS[2])
"""For a large state space, where an example costs next to nothing."""
LONG = settings(_CHOSEN, max_examples=_COUNTS[2] // 2 if PROFILE == "fuzz" else 25)
"""For a large state space whose examples cost much: some in every run, very many in `nox -s fuzz`."""
