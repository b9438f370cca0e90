"""The fixtures of the tests on labs, for those of the labs themselves."""

from tests.lab.conftest import kept_systems, labs, not_compiled

__all__ = ["kept_systems", "labs", "not_compiled"]
