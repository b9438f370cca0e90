"""The fixtures of the tests on labs, for those of the labs themselves."""

from tests.lab.conftest import kept_systems, labs, not_compiled
from tests.scripts.conftest import folder

__all__ = ["folder", "kept_systems", "labs", "not_compiled"]
