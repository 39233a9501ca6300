"""The two faces, as the tests of layer 1 have them."""

from lmstudio.conftest import bare, face, no_lms

__all__ = ["bare", "face", "no_lms"]
