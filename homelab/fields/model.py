"""The base classes of the settings' models: strict, frozen, camelCase, without unknown keys."""

from __future__ import annotations

import os

# Without this, pydantic looks through every installed package for plugins, at each start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from pydantic import BaseModel, ConfigDict, PrivateAttr, alias_generators  # noqa: E402


class Model(BaseModel):
    """A part of the settings."""

    # Names in YAML are camelCase, as everywhere in Pulumi.
    # The text below a key says what it means; docs/settings.md is made of these (docs/tables/meanings.py).
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=alias_generators.to_camel, strict=True)


class NamedModel(Model):
    """A part of the settings that stands under a name, which it knows once the whole settings are there."""

    _name: str = PrivateAttr("")

    def take_name(self, name: str) -> None:
        """Tells it its name."""
        self._name = name

    @property
    def name(self) -> str:
        """Its name in the settings."""
        return self._name
