"""The unmodified program, run by Pulumi's Windows programs and Python for Windows under Wine, on the lab. `make test-windows` runs these."""

from __future__ import annotations

import pytest

from homelab.errors import HomelabError
from tests.windows import pc


@pytest.fixture(scope="session")
def windows_pc() -> pc.Pc:
    try:
        return pc.ensure()
    except HomelabError as error:
        pytest.skip(str(error))
