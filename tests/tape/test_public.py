"""The public names of the tape."""

from __future__ import annotations

import inspect
import re

import pytest

from phi4_http import tape


@pytest.mark.parametrize("name", tape.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Each name of the list is found when it is asked for, under its own name, and is documented."""
    value = getattr(tape, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(tape)


def test_type_checkers_see_the_same_names() -> None:
    """The names that type checkers see are those that are found at run time."""
    seen = re.findall(r"^    from \.\w+ import (\w+) as \1$", inspect.getsource(tape), re.MULTILINE)
    assert sorted(seen) == tape.__all__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """An unknown name is an AttributeError, as everywhere."""
    with pytest.raises(AttributeError, match="has no attribute 'Cassette'"):
        tape.Cassette  # noqa: B018 (the access is the point)
