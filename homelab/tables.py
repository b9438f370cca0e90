"""Reads the program's own data: YAML files beside the modules that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# C's loader takes a tenth of the time, where PyYAML was built with it. Users' files are read by the other one, which
# shows the line of an error.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path) -> Any:
    """A data file's content.

    :raises OSError: it can't be read.
    """
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506
