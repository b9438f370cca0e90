"""docs/outputs.schema.json: the stack's outputs (homelab/contract.py) as a JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import get_original_bases

from docs.tables.meanings import texts
from homelab import shapes
from homelab.contract import Outputs

DOCUMENT = Path(__file__).resolve().parents[1] / "outputs.schema.json"


def schema() -> dict[str, Any]:
    """The schema, each field with the text below it in the source."""
    found = TypeAdapter(Outputs).json_schema()
    for name, about in {"Outputs": found, **found["$defs"]}.items():
        for field, text in _meanings(vars(shapes).get(name, Outputs)).items():
            about["properties"][field]["description"] = text
    return found


def _meanings(shape: type[Any]) -> dict[str, str]:
    # A base without a docstring has a key that is no name of Python's, and no source of its own.
    bases = [base for base in get_original_bases(shape) if base.__module__ == shapes.__name__ and base.__doc__]
    return {field: text for kind in bases for field, text in _meanings(kind).items()} | texts(shape)


def text() -> str:
    """What the file holds."""
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema()}, indent=2) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(text(), encoding="utf-8", newline="\n")
