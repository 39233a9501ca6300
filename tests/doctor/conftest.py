"""The two faces, as the tests of layer 1 have them."""

from lmstudio.conftest import face, no_lms

__all__ = ["face", "no_lms"]
