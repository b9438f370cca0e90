"""The program's own data files: YAML beside the modules that know what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# A tenth of the time, where PyYAML was built with it. What people write is read by the other one, which shows the line where it went wrong.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path) -> Any:
    """What is in a file.

    :raises OSError: it can't be read.
    """
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506
