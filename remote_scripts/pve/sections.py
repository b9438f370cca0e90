"""Files of sections, as Proxmox VE reads them (PVE::SectionConfig, parse_config): resource mappings, storages, what HA
has. Pure: both halves read them by this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Proxmox VE reads bytes: letters and blanks beyond ASCII are neither.
_HEADING = re.compile(r"(?:(\S+):\s*)?(\S+)\s*", re.ASCII)
_PROPERTY = re.compile(r"\s+(\S+)(?:\s+(.*\S))?\s*", re.ASCII)


@dataclass(frozen=True)
class Section:
    """`kind`: empty in files whose sections are all of one; `properties`: key and value, in their order."""

    kind: str
    name: str
    properties: list[tuple[str, str]] = field(default_factory=list)

    @property
    def options(self) -> dict[str, str]:
        """Key -> value; of one key the first counts."""
        return dict(reversed(self.properties))


def sections(text: str) -> list[Section]:
    """The sections of a file. One ends with an empty line: until then no line is another one's heading. A property
    without a value is set: `1`.
    """
    found: list[Section] = []
    is_within = False
    for line in text.split("\n"):
        if not line:
            is_within = False
        elif line.lstrip().startswith("#"):
            continue
        elif not is_within:
            if match := _HEADING.fullmatch(line):
                found.append(Section(match[1] or "", match[2]))
                is_within = True
        elif match := _PROPERTY.fullmatch(line):
            found[-1].properties.append((match[1], match[2] or "1"))
    return found
