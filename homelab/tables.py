"""The program's own data: YAML files beside the modules that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

# C's loader takes a tenth of the time, where PyYAML was built with it. Users' files are read by the other one, which
# shows the line of an error.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class SourcedRow(BaseModel):
    """A row that says where it was found: `evidence`: primary = vendor's document or code; report = a user's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[str, Field(min_length=3)]
    evidence: Literal["primary", "report"]


def read(path: Path) -> Any:
    """A data file's content.

    :raises OSError: it can't be read.
    """
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506
