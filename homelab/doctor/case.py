"""What is judged of a container: the case, and what every judgement asks of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from homelab.doctor.devices import Row, WantedCards, card_number
from homelab.doctor.reading import ContainerReading, Reading
from homelab.findings import Finding
from homelab.host.judge import troubles


@dataclass(frozen=True)
class Case:
    """All that is judged: a container on a host, the cards that it is to have, and its table."""

    reading: Reading
    container: ContainerReading
    cards: WantedCards
    rows: list[Row]

    @property
    def name(self) -> str:
        return f"container {self.container.id}"

    @property
    def needed(self) -> list[Row]:
        return [row for row in self.rows if row.needed]

    @property
    def of_nvidia(self) -> list[Row]:
        """What it needs of NVIDIA's driver."""
        return [row for row in self.needed if row.path.startswith("/dev/nvidia")]

    @property
    def given(self) -> list[Row]:
        return [row for row in self.rows if row.entry is not None]

    @property
    def method(self) -> str:
        """How a further device is best given: as those that are there, else by dev[n]."""
        used = {row.entry.method for row in self.given if row.entry is not None}
        return "device" if used != {"mount-entry"} else "mount-entry"

    @property
    def unknown(self) -> set[int]:
        """Cards that it is to have and the driver hasn't got; none of them while there is no driver at all."""
        if not self.reading.driver:
            return set()
        return {number for number in self.cards.numbers if number not in self.reading.cards}

    @property
    def expected(self) -> list[Row]:
        """What it needs and can have."""
        return [row for row in self.needed if card_number(row.path) not in self.unknown]

    @cached_property
    def log(self) -> tuple[list[Finding], list[str]]:
        """What the host's log has of its cards: findings, and remarks. A number that no card has now may be that of any
        card of NVIDIA's without one.
        """
        facts, numbers = self.reading.facts, self.reading.facts.nvidia_minors
        missing = set(self.cards.numbers).difference(numbers.values())
        paths = {row.path for row in self.rows if row.needed or row.entry}
        slots = {
            device.slot: device.slot
            for device in facts.display_devices
            if not paths.isdisjoint([f"/dev/nvidia{numbers.get(device.address)}", *facts.drm_nodes(device.address)])
            or (missing and device.is_nvidia and device.address not in numbers)
        }
        of_log = troubles(facts, slots, "", for_vms=False)
        findings = Finding.of(*(one.error for one in of_log if not one.harmless))
        return findings, [one.remark for one in of_log if one.harmless]
