"""The fixtures of the tests on labs, for those of the labs themselves; and hosts without a daemon."""

from pathlib import Path

import pytest

from tests.lab.conftest import kept_systems, lab, labs, shared_lab
from tests.lab.host_kit import Host

__all__ = ["kept_systems", "lab", "labs", "shared_lab"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A stock host that runs."""
    return Host(tmp_path, "rtx5090", running=True)


@pytest.fixture
def phoenix(tmp_path: Path) -> Host:
    """One that has NVIDIA's driver, and containers with its cards."""
    return Host(tmp_path, "phoenix", running=True)
