"""The keys in docs/settings*.md, made from the settings' models: `python -m docs.tables.settings` rewrites them.

Each key's meaning is the docstring below it in its model, each type's name is its `InWords`.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.tables import markdown
from docs.tables.meanings import meanings
from homelab import settings
from homelab.fields.types import InWords
from homelab.nvidia.settings import Mirror, NvidiaTimeouts

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"

# A table of the pages -> the model that it describes.
MODELS: dict[str, type[BaseModel]] = {
    "settings": settings.Settings,
    "host": settings.Host,
    "ssh": settings.Ssh,
    "gpu": settings.Gpu,
    "iommu": settings.IommuSettings,
    "download": settings.Download,
    "timeouts": settings.Timeouts,
    "vm": settings.Vm,
    "vm-gpu": settings.VmGpu,
    "new-vm": settings.NewVm,
    "container": settings.Container,
    "new-container": settings.NewContainer,
    "shutdown": settings.Shutdown,
    "nvidia": settings.Nvidia,
    "mirror": Mirror,
    "nvidia-timeouts": NvidiaTimeouts,
}
_NAMES = {bool: "true or false", int: "integer", str: "text", SecretStr: "secret"}


def pages() -> dict[str, str]:
    """The pages of the settings: a file's name -> its text."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCUMENTS.glob("settings*.md"))}


def with_current_tables(texts: Mapping[str, str]) -> dict[str, str]:
    """The pages with their tables made from the models.

    :param texts: a file's name -> its text.
    :raises KeyError: a page has a table without a model, or a table links to one that no page has.
    """
    places = {
        table: (page, anchor)
        for page, text in texts.items()
        for table, anchor in markdown.anchors_of_tables(text).items()
    }
    return {page: _with_tables(page, text, places) for page, text in texts.items()}


def _with_tables(page: str, text: str, places: Mapping[str, tuple[str, str]]) -> str:
    links = {
        model: f"[{_title(name)}]({'' if places[name][0] == page else places[name][0]}#{places[name][1]})"
        for name, model in MODELS.items()
    }
    here = {name: model for name, model in MODELS.items() if places[name][0] == page}
    return markdown.with_tables(text, {name: _described(model, links) for name, model in here.items()})


def _title(name: str) -> str:
    return {
        "gpu": "card",
        "vm-gpu": "card",
        "nvidia": "NVIDIA's stack",
        "ssh": "SSH",
        "vm": "VM",
        "new-vm": "new VM",
        "iommu": "IOMMU",
    }.get(name, name.removeprefix("nvidia-").replace("-", " "))


def _described(model: type[BaseModel], links: dict[type[BaseModel], str]) -> str:
    hints = typing.get_type_hints(model, include_extras=True)
    meant = meanings(model)
    keys = [
        f"- **`{field.alias or name}`** ({_type(hints[name], links)}{_default(field)}): {_on_one_line(meant[name])}\n"
        for name, field in model.model_fields.items()
    ]
    return f"{_on_one_line(model.__doc__)}\n\n{''.join(keys)}"


def _on_one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "; required"
    if field.default in (None, [], {}) or isinstance(field.default, BaseModel):
        return ""
    return f"; default `{field.default if isinstance(field.default, str) else json.dumps(field.default)}`"


def _type(annotation: Any, links: dict[type[BaseModel], str]) -> str:
    """An annotation in words.

    :raises KeyError: an unknown type: `_NAMES` needs a name for it.
    """
    if hasattr(annotation, "__metadata__"):
        words = [metadata.text for metadata in annotation.__metadata__ if isinstance(metadata, InWords)]
        kind = words[-1] if words else _type(get_args(annotation)[0], links)
        return f"{kind}{_bounds(annotation)}"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _or([f"`{value}`" for value in arguments])
    if origin in (typing.Union, types.UnionType):
        return _or([_type(argument, links) for argument in arguments if argument is not type(None)])
    if origin is list:
        return f"list: {_type(arguments[0], links)}"
    if origin is dict:
        return f"{_type(arguments[0], links)} → {_type(arguments[1], links)}"
    return links[annotation] if annotation in links else _NAMES[annotation]


def _bounds(annotation: Any) -> str:
    """`, 1 to 65535`, of a number."""
    fields = [metadata for metadata in annotation.__metadata__ if isinstance(metadata, FieldInfo)]
    least = [bound.ge for field in fields for bound in field.metadata if hasattr(bound, "ge")]
    most = [bound.le for field in fields for bound in field.metadata if hasattr(bound, "le")]
    return f", {max(least)} to {min(most)}" if least and most else ""


def _or(words: list[str]) -> str:
    return " or ".join(", ".join(words).rsplit(", ", 1)) if len(words) > 1 else words[0]


def main() -> None:
    """Write the tables of the pages."""
    for name, text in with_current_tables(pages()).items():
        (DOCUMENTS / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
