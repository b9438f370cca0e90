"""YAML by PyYAML's C parts, where it was built with them: a tenth of the time that those in Python take. Plain data alone, as `safe_load` has it."""

from __future__ import annotations

from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load(text: str) -> Any:
    """What a text says.

    Raises:
        yaml.YAMLError: it isn't YAML.
    """
    return yaml.load(text, Loader=_LOADER)  # noqa: S506


def dump(value: Any, **options: Any) -> str:
    """A value as text; options as of `yaml.dump`."""
    return str(yaml.dump(value, Dumper=_DUMPER, **options))
