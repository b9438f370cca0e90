"""A throw-away node: whether it is one, what is run on it, and what is told of it then."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from docs.tables.markdown import table
from homelab import __version__
from homelab.errors import HomelabError
from homelab.settings import Timeouts
from tests.e2e.roads import IDS
from tests.host import HostError, SshHost
from tests.waiting import PATIENCE

#: The file by which its owner says that it may be broken, and what must stand in it.
FILE = "/etc/homelab-throw-away"
WORDS = "homelab may restart this node, change its boot and delete its guests"
_GUESTS = 'cd "$HOMELAB_ROOT/etc/pve/nodes" && for one in */qemu-server/*.conf */lxc/*.conf; do [ ! -e "$one" ] || basename "$one" .conf; done'
# Of the node: version, kernel, boot loader, storage.
_ABOUT = r"""
pveversion | head -n 1 | cut -d / -f 2
uname -r
if proxmox-boot-tool status >/dev/null 2>&1; then echo proxmox-boot-tool
elif [ -e "$HOMELAB_ROOT/boot/grub/grub.cfg" ]; then echo GRUB; else echo another; fi
pvesm status | awk 'NR > 1 { print $2 }' | sort -u | paste -sd ' '
"""


def refusal(host: SshHost) -> HomelabError | None:
    """Why nothing is run on it."""
    try:
        words = host.read(FILE).strip()
        guests = {int(one) for one in host.run(_GUESTS).split()}
    except HostError as error:
        return HomelabError(
            wanted=f"to log in to {host.address} by SSH as root, and a Proxmox VE node there",
            found=str(error),
            why="all of the tier is done there",
            next="look whether `ssh` gets in with this key, and whether pve-cluster runs",
        )
    if words != WORDS:
        return HomelabError(
            wanted=f"{FILE} on {host.address}, with the line: {WORDS}",
            found=repr(words) if words else "no such file, or an empty one",
            why="by it its owner says that nothing there is worth anything",
            next=f"if that is so, make it by hand on the node: echo '{WORDS}' >{FILE}",
        )
    if others := sorted(guests - set(IDS)):
        return HomelabError(
            wanted=f"a node without guests but those that the tier makes, {IDS[0]} to {IDS[-1]}",
            found=f"on {host.address}: {', '.join(map(str, others))}",
            why="the tier deletes all guests of a node",
            next="take another node, or remove them by hand",
        )
    return None


def about(host: SshHost) -> dict[str, Any]:
    """Of the node, for its report, without names and addresses."""
    pve, kernel, loader, storage = host.run("bash -s", input=_ABOUT).splitlines()[:4]
    card, drivers = host.card(), host.drivers()
    of_card = {"id": card[1], "driver": drivers[card[0]]} if card else None
    found = {"homelab": __version__, "date": time.strftime("%Y-%m-%d"), "pve": pve, "kernel": kernel, "loader": loader}
    return found | {"storage": storage.split(), "slow": host.slow, "card": of_card}


@dataclass(eq=False)
class Tier:
    """What pytest is told of the node, and what comes of it: a plugin named `node`."""

    #: pytest's name of it.
    __name__ = "node"
    host: SshHost
    login: dict[str, Any]
    roads: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def patience(self) -> float:
        """Until a run of the engine has hung."""
        return PATIENCE * 3 * self.host.slow

    @property
    def settings(self) -> dict[str, Any]:
        """The host's in a stack; the limits raised, to a day at most, which is the most that the settings take."""
        limits = {
            name: min(int(seconds) * self.host.slow, 86_400)
            for name, seconds in Timeouts().model_dump(by_alias=True).items()
        }
        return {**self.login, "node": self.host.run("hostname").strip(), "timeouts": limits}

    def lacks(self, needs: tuple[str, ...]) -> str:
        """Why a road with these needs can't be run; empty: it can."""
        if "quorum" in needs:
            is_one_of_many = self.host.succeeds('[ -n "$HOMELAB_ROOT" ] || [ -e /etc/corosync/corosync.conf ]')
            return "the node can't be cut off: it is one of a cluster, or simulated" if is_one_of_many else ""
        if "power" in needs:
            is_cut = self.host.cut != SshHost.cut or self.host.succeeds('[ -e "$HOMELAB_ROOT/proc/sysrq-trigger" ]')
            return "" if is_cut else "the node's power can't be cut: no /proc/sysrq-trigger, nor a command (CUT=...)"
        if needs and not self.host.given:
            return "no card was named (CARD=first, or its id)"
        address, model = self.host.card() or ("", "")
        if needs and not model:
            return f"the node has no such card, but for its screen: {self.host.given}"
        if model.startswith("10de:"):
            return ""
        renders = f'ls -d "$HOMELAB_ROOT/sys/bus/pci/devices/{address}"/drm/renderD*'
        if "render" in needs and not self.host.succeeds(renders):
            return "the node's card has no node for computing (/dev/dri/renderD...), which is what a container shares"
        return "the node's card isn't NVIDIA's" if "nvidia" in needs else ""

    # -- pytest's hooks ------------------------------------------------------------------------------------------------------
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Roads that can't be run are skipped by name; a slow node has longer than a road's own mark says."""
        for item in items:
            item.add_marker(pytest.mark.timeout(7200 * self.host.slow), append=False)
            if (mark := item.get_closest_marker("node")) and (why := self.lacks(mark.args)):
                item.add_marker(pytest.mark.skip(reason=why))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A road's result and time."""
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        road = self.roads.setdefault(name, {"result": "passed", "seconds": 0, "why": ""})
        road["seconds"] = round(road["seconds"] + report.duration)
        if isinstance(report.longrepr, tuple):
            road |= {"result": "not run", "why": report.longrepr[2].removeprefix("Skipped: ")}
        elif report.failed:
            road["result"] = "failed"


def as_table(report: dict[str, Any]) -> str:
    """A report as Markdown, for docs/tiers.md."""
    card = f"card {report['card']['id']}" if report["card"] else "no card"
    about = f"Proxmox VE {report['pve']}, kernel {report['kernel']}, {report['loader']}, {' and '.join(report['storage'])}, {card}"
    slow = f", {report['slow']} times slower" if report["slow"] > 1 else ""
    roads = report["roads"].items()
    rows = [(name, ": ".join(filter(None, (one["result"], one["why"]))), f"{one['seconds']} s") for name, one in roads]
    head = f"{about}{slow}; homelab {report['homelab']}, {report['date']}:\n\n"
    return head + table(("road", "result", "time"), rows)
