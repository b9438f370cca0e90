"""The fixtures of the tests on labs, for those of the labs themselves."""

from tests.lab.conftest import kept_systems, lab, labs, not_compiled, shared_lab

__all__ = ["kept_systems", "lab", "labs", "not_compiled", "shared_lab"]
