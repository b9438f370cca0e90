"""A VM of a lab host without a daemon: given its card, booted, commands run inside; and the same for a container."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from lab.api.guest_system import booted, environment_of
from lab.api.guests import Guest
from lab.host.state import HostState
from lab.scenario import Scenario, load_scenario, scenario_from
from lab.ssh import make_key
from lab.state import StatePaths
from tests.lab.host_kit import Host, ran, succeeded

CARD = "0000:01:00"


def scenario(name: str = "rtx5090", vm: dict[str, Any] | None = None, **keys: Any) -> Scenario:
    """A scenario of the lab whose VM 103 has another `system`, or with other keys changed."""
    data = load_scenario(name).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data.pop("name")
    for guest in data.get("guests", []):
        if vm is not None and guest["id"] == 103:
            guest["system"] = vm
    return scenario_from({**data, **keys}, "changed", name)


def other_card(device: str, **keys: Any) -> list[Any]:
    """The rtx5090 scenario's devices with another card in its place."""
    pci: list[Any] = scenario().model_dump(mode="json", by_alias=True, exclude_defaults=True)["pci"]
    for bridge in pci:
        for child in bridge.get("children", []):
            if child["address"].endswith("01:00.0") and device != "2b85":
                child |= {"device": device, "name": f"another card ({device})", **keys}
    return pci


#: Those with which a container computes.
NODES = ("nvidia0", "nvidiactl", "nvidia-uvm")


def emptied(host: Host, ctid: int, *nodes: str) -> Host:
    """A host whose container runs with nothing installed, and these nodes."""
    host.output(f"pct stop {ctid}; rm -rf $LAB_STATE/guests/{ctid}")
    conf = host.root / f"etc/pve/lxc/{ctid}.conf"
    head = conf.read_text().partition("\n[")[0]
    kept = [line for line in head.splitlines() if not line.startswith(("dev", "lxc."))]
    kept += [f"dev{n}: /dev/{node},mode=0666" for n, node in enumerate(nodes)]
    conf.write_text("\n".join(kept) + "\n")
    host.output(f"pct start {ctid}")
    return host


class Vm:
    """VM 103 of a scenario, running, with the card at 01:00 unless told otherwise."""

    def __init__(self, state: Path, wanted: Scenario | str = "rtx5090", *, card: bool = True) -> None:
        self.host = Host(state, wanted)
        key = StatePaths(self.host.machine.state).user_key
        key.parent.mkdir(parents=True, exist_ok=True)
        make_key(key, "test")
        self.host.booted()
        self.host.output("qm stop 103")
        if card:
            self.host.output(f"qm set 103 --hostpci0 {CARD},pcie=1")
        self.host.output("qm start 103")
        self.system = booted(self._guest)
        self.root = self.system.root

    @property
    def _guest(self) -> Guest:
        return Guest(HostState(self.host.machine.state), "qemu", 103)

    def reboot(self) -> None:
        """Its system goes down and comes up again."""
        self._guest.restart_system()
        self.system = booted(self._guest)

    def fault(self, name: str, value: Any) -> None:
        """Set a fault of the lab."""
        self.host.machine.set_fault(name, value)

    def run(self, script: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """A script in bash inside."""
        return ran(["bash", "-c", script], environment_of(self.system, user), self.root)

    def output(self, script: str) -> str:
        """What a script that must succeed prints."""
        return succeeded(script, self.run(script))

    def refusal(self, script: str, status: int | None = None) -> str:
        """What a script that must fail says, on either stream."""
        done = self.run(script)
        assert done.returncode != 0 and status in (None, done.returncode), f"{script}\n{done}"
        return done.stdout + done.stderr
