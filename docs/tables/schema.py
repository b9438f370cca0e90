"""Makes docs/config.schema.json, by which an editor completes and checks `Pulumi.<stack>.yaml`.
`python -m docs.tables.schema` writes it anew.

It is made from the settings' models, so it knows each key, its meaning, its type and its bounds. What several settings
must be together (one way to log in, a card for one VM) only the program checks. JSON Schema's draft 7, the newest that
editors for YAML know whole.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from docs.tables.meanings import derived, meanings
from homelab.fields.model import Model
from homelab.settings.stack_file import KEYS_OF_PULUMI
from homelab.settings.whole import Settings

FILE = Path(__file__).resolve().parents[2] / "docs" / "config.schema.json"

_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_ENCRYPTED = "Encrypted"


def schema() -> dict[str, Any]:
    """The schema of a stack's file."""
    generated = Settings.model_json_schema(ref_template="#/definitions/{model}")
    models = {model.__name__: model for model in derived(Model)}
    for name, part in {**generated["$defs"], Settings.__name__: generated}.items():
        for field, meaning in meanings(models[name]).items():
            part["properties"][models[name].model_fields[field].alias or field]["description"] = meaning
    parts = {name: _adapted(part) for name, part in generated.pop("$defs").items()}
    # A card's name alone is a card of a VM; one number of a card needs no quotes.
    parts["VmGpu"] = {"description": parts["VmGpu"]["description"], "anyOf": [{"type": "string"}, parts["VmGpu"]]}
    parts["Container"]["properties"]["gpuAssignment"]["anyOf"].append({"type": "integer", "minimum": 0})
    for version in ("driver", "cuda", "cudnn"):  # Pulumi itself may write one without its quotes
        parts["Nvidia"]["properties"][version]["anyOf"].append({"type": "number"})
    parts[_ENCRYPTED] = {
        "description": "A value that `pulumi config set --secret --path` has encrypted.",
        "type": "object",
        "properties": {"secure": {"type": "string"}},
        "required": ["secure"],
        "additionalProperties": False,
    }
    keys = {f"homelab:{name}": _adapted(value) for name, value in generated["properties"].items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A stack of homelab",
        "description": "Pulumi.<stack>.yaml: the settings of a stack. docs/settings.md describes them.",
        "type": "object",
        "properties": {
            "config": {
                "description": "The settings.",
                "type": "object",
                "properties": keys,
                # Keys of other projects and providers have a name before the colon, too.
                "patternProperties": {r"^(?!homelab:)[^:]+:.+$": {}},
                "additionalProperties": False,
                "required": [f"homelab:{name}" for name in generated["required"]],
            },
            **{name: {"description": description} for name, description in KEYS_OF_PULUMI.items() if name != "config"},
        },
        "additionalProperties": False,
        "required": ["config"],
        "definitions": parts,
    }


def _adapted(value: Any, *, names: bool = False) -> Any:
    """A part of pydantic's schema in the form that editors for YAML need: draft 7, and text that may be encrypted.

    :param names: whether the keys are names of settings, rather than keywords of JSON Schema.
    """
    if isinstance(value, list):
        return [_adapted(item) for item in value]
    if not isinstance(value, dict):
        return value
    if names:
        return {name: _adapted(part) for name, part in value.items()}
    adapted = {
        keyword: _adapted(part, names=keyword == "properties") if keyword not in ("default", "enum") else part
        for keyword, part in value.items()
        if keyword not in ("title", "format", "writeOnly")
    }
    if "form" in adapted:
        adapted["title"] = adapted.pop("form")
    if "description" in adapted:
        adapted["description"] = _LINK.sub(r"\1", " ".join(adapted["description"].split()))
    if "$ref" in adapted and len(adapted) > 1:  # in draft 7, what stands beside a reference counts for nothing
        adapted = {"allOf": [{"$ref": adapted.pop("$ref")}], **adapted}
    if adapted.get("type") == "string" and "enum" not in adapted and "const" not in adapted:
        kind = {"type": adapted.pop("type"), **({"title": adapted.pop("title")} if "title" in adapted else {})}
        adapted["anyOf"] = [kind, {"$ref": f"#/definitions/{_ENCRYPTED}"}]
    if any(choice.keys() == {"anyOf"} for choice in adapted.get("anyOf", ())):
        adapted["anyOf"] = [
            inner
            for choice in adapted["anyOf"]
            for inner in (choice["anyOf"] if choice.keys() == {"anyOf"} else [choice])
        ]
    if "propertyNames" in adapted:  # a name is never encrypted
        adapted["propertyNames"] = {"type": "string"}
    return adapted


def text() -> str:
    """The file's content."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write docs/config.schema.json."""
    FILE.write_text(text(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
