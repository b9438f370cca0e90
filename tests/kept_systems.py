"""Hosts and VMs without a daemon that several tests begin with: made once in a process, and brought back for each of them."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

from lab import processes

T = TypeVar("T")


class KeptSystems:
    """Systems as they were after what several tests begin with: made once in a process, and brought back for each of its tests, as `Labs` in
    tests/e2e/conftest.py does with hosts that have a daemon."""

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self._new_folder = new_folder
        self._made: dict[Hashable, tuple[Path, Any]] = {}

    def take(self, key: Hashable, make: Callable[[Path], T]) -> T:
        """What ``make`` has made of a new folder, with that folder as it was then."""
        if key not in self._made:
            folder = self._new_folder()
            self._made[key] = folder, make(folder / "lab")
            subprocess.run(["cp", "-a", "lab", "kept"], cwd=folder, check=True)
        else:
            folder, _ = self._made[key]
            processes.end_left_behind(folder / "lab")
            shutil.rmtree(folder / "lab")
            subprocess.run(["cp", "-a", "kept", "lab"], cwd=folder, check=True)
        made: T = copy.deepcopy(self._made[key][1])
        return made
