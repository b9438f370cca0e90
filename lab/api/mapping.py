"""Resource mappings of PCI devices: /etc/pve/mapping/pci.cfg, and whether they fit the hardware."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from lab.host.devices import PciDevice, load_devices
from lab.host.kernel import RunningKernel
from lab.host.state import HostState

from .errors import Died
from .options import parse_properties, split_list

_FILE = "/etc/pve/mapping/pci.cfg"
_FLAGS = ("mdev", "live-migration-capable")
_HEADING = re.compile(r"(\S+)\s*", re.ASCII)
_PROPERTY = re.compile(r"\s+(\S+)(?:\s+(.*\S))?\s*", re.ASCII)


@dataclass
class Mapping:
    """One mapping: its entries are property strings, one or more for a node."""

    name: str
    entries: list[str] = field(default_factory=list)
    description: str | None = None
    flags: dict[str, int] = field(default_factory=dict)

    def of_node(self, node: str) -> list[dict[str, str]]:
        """The entries for a node, taken apart."""
        return [entry for text in self.entries if (entry := parse_properties("mapping-entry", text))["node"] == node]


class Mappings:
    """The PCI mappings of a cluster, as read; `save` writes them.

    Args:
        host: whose /etc/pve it is.
    """

    def __init__(self, host: HostState) -> None:
        self._host = host
        text = host.read(_FILE, "")
        self.digest = hashlib.sha1(text.encode()).hexdigest()
        self.all = read_mappings(text)

    def save(self) -> None:
        """Write pci.cfg.

        Raises:
            ApiError: 500, a description of several lines, which the file's form has no place for.
        """
        parts = []
        for mapping in self.all.values():
            if re.search(r"[\n\r]", mapping.description or ""):
                raise Died("property 'description' contains a line feed")
            lines = [f"description {mapping.description}"] if mapping.description else []
            lines += [f"{key} {value}" for key, value in mapping.flags.items()]
            lines += [f"map {entry}" for entry in mapping.entries]
            parts.append(f"{mapping.name}\n" + "".join(f"\t{line}\n" for line in lines))
        self._host.write(_FILE, "\n".join(parts), 0o640)

    def shown(self, mapping: Mapping) -> dict[str, Any]:
        """A mapping as the API gives it, without its id."""
        found: dict[str, Any] = {"type": "pci", "map": mapping.entries, "digest": self.digest, **mapping.flags}
        return {**found, "description": mapping.description} if mapping.description else found

    # -- changes -----------------------------------------------------------------------------------------
    def create(self, name: str, parameters: dict[str, Any]) -> None:
        """Add a mapping.

        Raises:
            ApiError: 500, there is one of that name, or it can't be written.
        """
        if name in self.all:
            raise Died(f"create hardware mapping failed: pci ID '{name}' already defined")
        self.all[name] = Mapping(name, list(parameters["map"]), parameters.get("description"), _flags(parameters))
        try:
            self.save()
        except Died as error:
            raise Died(f"create hardware mapping failed: {error.text}") from error

    def update(self, name: str, parameters: dict[str, Any]) -> None:
        """Change a mapping.

        Raises:
            ApiError: 500: a wrong digest, no such mapping, no entries.
        """
        if parameters.get("digest") not in (None, self.digest):
            raise _update_failed("detected modified configuration - file changed by other user? Try again.")
        if name not in self.all:
            raise _update_failed(f"pci ID '{name}' does not exist")
        if "map" not in parameters:
            raise _update_failed("missing value for required option 'map'")
        mapping = self.all[name]
        delete = split_list(parameters.get("delete", ""))
        for key in delete:
            if key in ("map", "id"):
                raise _update_failed(f"unable to delete required option '{key}'")
            if key not in ("description", *_FLAGS):
                raise _update_failed(f"no such option '{key}'")
        mapping.entries = list(parameters["map"])
        mapping.flags |= _flags(parameters)
        mapping.flags = {key: value for key, value in mapping.flags.items() if key not in delete}
        mapping.description = None if "description" in delete else parameters.get("description", mapping.description)
        try:
            self.save()
        except Died as error:
            raise _update_failed(error.text) from error

    # -- the hardware ------------------------------------------------------------------------------------
    def problem(self, mapping: Mapping, entry: dict[str, str]) -> str | None:
        """Return why an entry doesn't fit this host's hardware, None when it does."""
        for number, path in enumerate(entry["path"].split(";")):
            address = full_address(path if "." in path else f"{path}.0")
            device = device_at(self._host, address)
            if device is None:
                return f"pci device '{address}' not found"
            problem = self._compare(mapping, entry, address, device, first=number == 0)
            if problem is not None:
                return problem
        return None

    def _compare(
        self, mapping: Mapping, entry: dict[str, str], address: str, device: PciDevice, *, first: bool
    ) -> str | None:
        group = RunningKernel.attach(self._host).group_of(address)
        expected = {
            "id": device.ids,
            "iommugroup": str(-1 if group is None else group),
            "mdev": "0",
            # sysfs always has the two files; a device without a subsystem shows zeros there.
            "subsystem-id": device.subsystem or "0000:0000",
        }
        configured = {**entry, "mdev": str(mapping.flags.get("mdev", 0))}
        for key, wanted in expected.items():
            if key == "iommugroup" and not first:
                continue  # the group of a slot is compared once, for its first function
            given = configured.get(key)
            if wanted is not None and given is None:
                return f"missing expected property '{key}' for device '{address}'"
            if wanted is None and given is not None:
                return f"unexpected property '{key}' configured for device '{address}'"
            if wanted is not None and given is not None and wanted.lower() != given.lower():
                return f"'{key}' does not match for '{mapping.name}' ({wanted} != {given})"
        return None


def read_mappings(text: str) -> dict[str, Mapping]:
    """The mappings of a file's text: only an empty line ends one (PVE::SectionConfig)."""
    found: dict[str, Mapping] = {}
    mapping: Mapping | None = None
    for line in text.split("\n"):
        if line.lstrip().startswith("#"):
            continue
        if not line:
            mapping = None
        elif mapping is None:
            if heading := _HEADING.fullmatch(line):
                mapping = found[heading[1]] = Mapping(heading[1])
        elif match := _PROPERTY.fullmatch(line):
            key, value = match[1], match[2] or ""
            if key == "map":
                mapping.entries.append(value)
            elif key in _FLAGS:
                mapping.flags[key] = int(value in ("1", "yes", "on", "true"))
            elif key == "description":
                mapping.description = value
    return found


def _flags(parameters: dict[str, Any]) -> dict[str, int]:
    return {key: int(parameters[key]) for key in _FLAGS if key in parameters}


def _update_failed(why: str) -> Died:
    return Died(f"update hardware mapping failed: {why}")


def full_address(text: str) -> str:
    """`0000:01:00.0` for `01:00.0`; a slot stays one."""
    text = text.lower()
    return text if text.count(":") == 2 else f"0000:{text}"


def device_at(host: HostState, address: str) -> PciDevice | None:
    """The device at an address."""
    return next((device for device in load_devices(host.machine) if device.address == address), None)
