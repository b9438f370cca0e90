"""A card that is handed over, on its host: its functions, their drivers, its nodes' numbers, and whether it answers."""

from __future__ import annotations

from contextlib import suppress

from remote_scripts.cards import host_nodes
from remote_scripts.notes.card import Card
from remote_scripts.notes.handover import RefusedError as RefusedError
from remote_scripts.notes.handover import note_of, read_record, story_line, write_record
from remote_scripts.notes.record import Record, State
from remote_scripts.nvidia import nvidia
from remote_scripts.tools.pci import DEVICES, driver_of, ids_of
from remote_scripts.tools.system import System

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

    def is_on_vfio(self) -> bool:
        """Whether every function is on vfio-pci, and it is that card."""
        on_vfio = all(driver_of(self.system, function) == "vfio-pci" for function in self.functions)
        return on_vfio and self.has_expected_ids()

    def has_expected_ids(self) -> bool:
        """Hardware may have been changed, or buses numbered anew, since it was configured."""
        return all(ids_of(self.system, address) == ids for address, ids in self.functions.items())

    def is_alive(self) -> bool:
        """Whether every function's configuration space reads as what it is. Of a card that doesn't answer, all bits are
        ones; and to read it may take for ever.
        """
        for address, ids in self.functions.items():
            config = self.system.files.name(f"{DEVICES}/{address}/config")
            done = self.system.run.ask("od", "-An", "-N4", "-tx1", config, seconds=_READ_SECONDS)
            if "".join(done.text.split()) != f"{ids[2:4]}{ids[0:2]}{ids[7:9]}{ids[5:7]}":
                return False
        return True

    def is_only(self) -> bool:
        """Whether NVIDIA's driver has no other card."""
        others = set(self.system.files.names(DEVICES)) - set(self.functions)
        return not any(driver_of(self.system, address) == "nvidia" for address in others)

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
        return [name for address in self.functions for name in host_nodes.drm(self.system, address) if name]

    def node_numbers(self) -> set[str]:
        """The numbers, in hexadecimal, of what must not be open: the card's own node and nvidia-modeset, what is in
        /dev/dri and /dev/snd of it, and where the whole driver goes, its control nodes.
        """
        minor = self.minor
        numbers = {"c3:fe", *([f"c3:{int(minor):x}"] if minor else [])}
        numbers |= self._hexadecimal("drm/*/dev", "sound/*/dev", "sound/*/*/dev")
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
        links = (files.target(f"{DEVICES}/{address}/iommu_group") for address in self.functions)
        paths = dict.fromkeys(f"/dev/vfio/{link.rpartition('/')[2]}" for link in links if link)
        return [path for path in paths if files.exists(path)]

    def mapped_as(self) -> str:
        """A pattern of grep's for how its memory stands in /proc/PID/maps: a process may have closed the node."""
        names = [f"nvidia{self.minor}", "nvidia-modeset", *(f"dri/{name}" for name in self.drm_names)]
        names += ["nvidiactl", "nvidia-uvm"] if self.is_only() else []
        return f" /dev/({'|'.join(names)})( \\(deleted\\))?$"


class RecordedCard(SharedCard):
    """A card with its record. Its caller holds the host's lock for every change.

    :raises Failure: the record can't be read.
    """

    def __init__(self, system: System, card: Card) -> None:
        super().__init__(system, card)
        self.record = read_record(system, card.name)

    def say(self, text: str) -> None:
        """A line for the task's log or the journal, and for the story."""
        self.system.log.say(f"{self.name}: {text}")
        story_line(self.system, self.name, text)

    def save(self, **changes: object) -> bool:
        """Whether the record, with these changes, is on the disk; in memory it is in any case."""
        try:
            write_record(self.system, self.name, self.record, **changes)
        except OSError:
            return False
        return True

    def need_saved(self, **changes: object) -> None:
        """:raises RefusedError: the record, with these changes, can't be written."""
        if not self.save(**changes):
            raise RefusedError("its state can't be noted on the disk")

    def remove(self) -> None:
        """The card is with the host again: it has no record."""
        self.system.files.remove(note_of(self.name).path)
        self.record = Record()

    def rest(self, state: State, why: str) -> None:
        """The card stays in this state, for this reason, which is said once."""
        if (state, why) == (self.record.state, self.record.why):
            return
        if why:
            self.say(f"{state}: {why}")
        if not self.save(state=state, why=why):
            self.say("that can't be noted on the disk")

    def mark_stuck(self, step: str) -> None:
        """A step of the card's waits in the kernel."""
        self.rest(
            "STUCK",
            f"{step} has not come to an end: the driver waits in the kernel, and as a rule only a reboot of the host "
            "ends that. Nothing is tried while it waits",
        )
