"""A card that is handed over, on its host: its functions, their drivers, its nodes' numbers, and whether it answers."""

from __future__ import annotations

import re
import time
from contextlib import suppress

from remote_scripts.shared import nvidia
from remote_scripts.shared.card import Card
from remote_scripts.shared.pci import DEVICES, driver_of, ids_of
from remote_scripts.tools.system import System

#: How often it is looked whether a card answers, and the seconds in between, before it is taken for dead.
_LOOKS = 3
_LOOK_SECONDS = 1.0
_READ_SECONDS = 5.0


class SharedCard:
    """The card, as this host has it. `name`, `functions`, `gpu`: as of `Card`."""

    def __init__(self, system: System, card: Card) -> None:
        self.system = system
        self.name, self.functions, self.gpu = card.name, card.functions, card.gpu

    @property
    def driver(self) -> str:
        """The driver of its graphics function; empty: none."""
        return driver_of(self.system, self.gpu)

    def is_whole_on_vfio(self) -> bool:
        """Whether every function is on vfio-pci."""
        return all(driver_of(self.system, function) == "vfio-pci" for function in self.functions)

    def is_on_vfio(self) -> bool:
        """The same, where it is that card."""
        return self.is_whole_on_vfio() and self.has_expected_ids()

    def has_expected_ids(self) -> bool:
        """Hardware may have been changed, or buses numbered anew, since it was configured."""
        return all(ids_of(self.system, address) == ids for address, ids in self.functions.items())

    def is_alive(self) -> bool | None:
        """Whether every function's configuration space reads as what it is. False: something else was read, again and
        again, or it has gone from the bus; None: it can't be told, since nothing was read. Of a card that doesn't
        answer, all bits are ones; and to read it may take for ever.
        """
        alive: bool | None = True
        files = self.system.files
        for address, ids in self.functions.items():
            wanted = f"{ids[2:4]}{ids[0:2]}{ids[7:9]}{ids[5:7]}"
            current = ""
            for look in range(_LOOKS):
                if look:
                    time.sleep(_LOOK_SECONDS)
                config = files.name(f"{DEVICES}/{address}/config")
                done = self.system.run.ask("od", "-An", "-N4", "-tx1", config, seconds=_READ_SECONDS)
                current = "".join(done.text.split())
                if current == wanted:
                    break
            else:
                is_gone = files.at(DEVICES).is_dir() and not files.exists(f"{DEVICES}/{address}")
                if is_gone or re.fullmatch(r"[0-9a-f]{8}", current):
                    return False
                alive = None
        return alive

    def is_only(self) -> bool:
        """Whether NVIDIA's driver has no other card."""
        return not any(driver_of(self.system, address) == "nvidia" for address in self._other_functions())

    def _other_functions(self) -> list[str]:
        return [address for address in self.system.files.names(DEVICES) if address not in self.functions]

    # Its nodes.

    @property
    def minor(self) -> str:
        """N of its /dev/nvidiaN; empty: there is none, or it can't be read."""
        try:
            minor = nvidia.minor_of(self.system, self.gpu)
        except OSError:
            return ""
        return "" if minor is None else str(minor)

    @property
    def drm_names(self) -> list[str]:
        """Of its nodes in /dev/dri."""
        drm = []
        for address in self.functions:
            names = self.system.files.names(f"{DEVICES}/{address}/drm")
            drm += [name for kind in ("card", "renderD") for name in names if name.startswith(kind)]
        return drm

    def node_numbers(self) -> set[str]:
        """The numbers, in hexadecimal, of what must not be open: the card's own node and nvidia-modeset, what is in
        /dev/dri and /dev/snd of it, and where the whole driver goes, its control nodes.
        """
        minor = self.minor
        numbers = {"c3:fe", *([f"c3:{int(minor):x}"] if minor else [])}
        numbers |= self._hexadecimal("drm/*/dev", "sound/*/dev", "sound/*/*/dev")
        # Of a node that says no numbers of its own.
        numbers |= {f"e2:{int(re.sub(r'[^0-9]', '', name)):x}" for name in self.drm_names}
        if self.is_only():
            numbers.add("c3:ff")
            with suppress(OSError):
                if uvm := nvidia.major_of(self.system, "nvidia-uvm"):
                    numbers |= {f"{uvm:x}:0", f"{uvm:x}:1"}
        return numbers

    def _hexadecimal(self, *patterns: str) -> set[str]:
        folders = [self.system.files.at(f"{DEVICES}/{address}") for address in self.functions]
        paths = (path for folder in folders for pattern in patterns for path in folder.glob(pattern))
        pairs = (path.read_text().strip().partition(":") for path in paths)
        return {f"{int(major):x}:{int(minor):x}" for major, _, minor in pairs}

    def group_nodes(self) -> list[str]:
        """The nodes of its IOMMU groups below /dev/vfio: open while a VM has it."""
        files = self.system.files
        paths = []
        for address in self.functions:
            try:
                paths.append(f"/dev/vfio/{files.at(f'{DEVICES}/{address}/iommu_group').readlink().name}")
            except OSError:
                continue
            paths += [f"/dev/vfio/devices/{name}" for name in files.names(f"{DEVICES}/{address}/vfio-dev")]
        return [path for path in dict.fromkeys(paths) if files.exists(path)]

    def mapped_as(self) -> str:
        """A pattern of grep's for how its memory stands in /proc/PID/maps: a process may have closed the node."""
        names = [f"nvidia{self.minor}", "nvidia-modeset", *(f"dri/{name}" for name in self.drm_names)]
        names += ["nvidiactl", "nvidia-uvm"] if self.is_only() else []
        return f" /dev/({'|'.join(names)})( \\(deleted\\))?$"
