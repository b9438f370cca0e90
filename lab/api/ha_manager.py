"""HA's manager and its agents: what they know of nodes and services, their rounds, and what `ha-manager status` says of them.

One node's manager is in charge (the master); each node has an agent, which does what the manager wants done with the guests there. What both know lies in
`ha.json` beside the cluster's /etc/pve, where a real cluster has manager_status and lrm_status. States, their order and their words are pve-ha-manager's
(PVE::HA::Manager, PVE::HA::LRM, PVE::API2::HA::Status, PVE::HA::Tools).

Not there: migration, the watchdog and so the recovery of services from a node that is lost, node affinities, restarts of what crashed. A guest's start and
stop by request is lab.api.ha's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.host.pve_packages import is_pve9
from lab.host.state import HostState, write_atomically

from . import ha_config, lxc, qemu_power
from .guests import Guest, all_ids
from .quorum import Members
from .tasks import Tasks, Work

#: Between two rounds of a manager or an agent; ten seconds on a real one.
ROUND_SECONDS = 0.2
FILE = "ha.json"


class HaManager:
    """What manager and agents know, as one node of the cluster reads it. To be used within `exclusively`.

    Args:
        host: the node.
    """

    def __init__(self, host: HostState) -> None:
        self.host = host
        self.members = Members(host)
        self._path = file_of(host)
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else "{}"
        self._before = text
        data = json.loads(text)
        self.master: str | None = data.get("master")
        #: Node -> mode (active, restart) and state of its agent, and since when (seconds since 1970) nobody has heard of it.
        self.nodes: dict[str, dict[str, Any]] = data.get("nodes", {})
        #: Service -> node, state; due: its agent is to start it.
        self.services: dict[str, dict[str, Any]] = data.get("services", {})

    def save(self) -> None:
        """Write what has changed: nothing where HA isn't in use, so that no round looks there."""
        data = {"master": self.master, "nodes": self.nodes, "services": self.services}
        if not any(data.values()) and not self._path.exists():
            return
        text = json.dumps(data, indent=1, sort_keys=True) + "\n"
        if text != self._before:
            write_atomically(self._path, text)
            self._before = text

    @property
    def online(self) -> set[str]:
        """The nodes that this one hears of."""
        return {name for name, about in self.members.nodes.items() if about["online"]}

    def host_of(self, name: str) -> HostState:
        """A node's own side."""
        return (
            self.host
            if name == self.host.node or self.members.cluster is None
            else self.members.cluster.peers[name].host
        )

    # -- rounds ------------------------------------------------------------------------------------------
    def take_part(self) -> None:
        """One round of this node: as the agent it is, and as the manager if it is the master."""
        if not self.members.quorate:
            return
        config = ha_config.read(self.host)
        if not config and not self.services:
            return
        own = self.nodes.setdefault(self.host.node, {})
        own.pop("gone", None)
        own["mode"] = "active"
        busy = any(one["node"] == self.host.node and one["state"] != "stopped" for one in self.services.values())
        own["state"] = "active" if busy else "wait_for_agent_lock"
        if self.master not in self.online:
            self.master = self.host.node
        if self.master == self.host.node:
            self._manage(config)

    def _manage(self, config: dict[str, dict[str, str]]) -> None:
        for name in self.members.nodes:
            about = self.nodes.setdefault(name, {"mode": "active", "state": "wait_for_agent_lock"})
            if name not in self.online:
                about.setdefault("gone", time.time())
        places = all_ids(self.host)
        for sid, settings in config.items():
            number = ha_config.kind_of(sid)[1]
            if sid not in self.services and ha_config.wanted(settings) != "ignored" and number in places:
                self.services[sid] = {"node": places[number][0], "state": "started"}
        for sid in list(self.services):
            if sid not in config or ha_config.wanted(config[sid]) == "ignored":
                del self.services[sid]
        for sid, one in sorted(self.services.items()):
            self._decide(sid, one, ha_config.wanted(config[sid]), places)

    def _decide(self, sid: str, one: dict[str, Any], wanted: str, places: dict[int, Any]) -> None:
        """A service's next state."""
        place = places.get(ha_config.kind_of(sid)[1])
        if place is not None and one["node"] != place[0]:
            one["node"] = place[0]  # somebody has moved it by hand while it was off
        mode = self.nodes.get(one["node"], {}).get("mode")
        one["state"] = "freeze" if mode == "restart" else "started" if wanted == "started" else "stopped"

    def begin(self) -> Iterator[Work]:
        """The tasks that this node's agent begins now."""
        if not self.members.quorate:
            return
        tasks = Tasks(self.host)
        running = {upid.text for upid in tasks.running()}
        for sid, one in self.services.items():
            if one["node"] != self.host.node or one.get("worker") in running:
                continue
            kind, vmid = ha_config.kind_of(sid)
            guest = Guest(self.host, kind, vmid)
            if one["state"] != "started" or not one.pop("due", False) or not guest.exists or guest.running:
                continue
            upid, log = tasks.begin("qmstart" if kind == "qemu" else "vzstart", str(vmid))
            one["worker"] = upid.text
            work = qemu_power.start_work(guest, log) if kind == "qemu" else lxc.start_work(guest, log)
            yield tasks.follow(upid, log, work)

    # -- what is said ------------------------------------------------------------------------------------
    def described(self) -> list[str]:
        """The lines of `ha-manager status`."""
        quorate, said = self.members.quorate, []
        said.append("quorum OK" if quorate else f"quorum No quorum on node '{self.host.node}'!")
        config = ha_config.read(self.host)
        active = self.master is not None and quorate and self.master in self.online
        if self.master is not None:
            state = "active" if active else "idle" if quorate and not config else "old timestamp - dead?"
            said.append(f"master {self.master} ({state}, {self._heard_of(self.master)})")
        if is_pve9(self.host):
            said.append(f"fencing {'armed (CRM watchdog active)' if active else 'standby (CRM watchdog standby)'}")
        said += [f"lrm {name} ({self._agent(name)}, {self._heard_of(name)})" for name in sorted(self.nodes)]
        known = [*sorted(self.services), *sorted(set(config) - set(self.services))]
        return [*said, *(f"service {sid} ({self._service(sid, config.get(sid))})" for sid in known)]

    def _heard_of(self, node: str) -> str:
        gone = self.nodes.get(node, {}).get("gone")
        if gone is None and not (self.members.quorate and node in self.online):
            gone = self._path.stat().st_mtime
        return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(gone))

    def _agent(self, node: str) -> str:
        about = self.nodes[node]
        mode, state = about.get("mode", "active"), about.get("state", "unknown")
        heard = self.members.quorate and node in self.online
        watchdog = "active" if heard and state == "active" else "standby"
        if heard and mode != "active":
            said = f"{mode} mode"
        elif not heard:
            said = "old timestamp - dead?"
        else:
            said = "idle" if state == "wait_for_agent_lock" else state
        return f"{said}, watchdog {watchdog}" if is_pve9(self.host) else said

    def _service(self, sid: str, settings: dict[str, str] | None) -> str:
        one = self.services.get(sid)
        place = all_ids(self.host).get(ha_config.kind_of(sid)[1])
        node = one["node"] if one else place[0] if place else "---"
        return f"{node}, {self._verbose(sid, one, settings, place is not None)}"

    def _verbose(self, sid: str, one: dict[str, Any] | None, settings: dict[str, str] | None, exists: bool) -> str:
        """A state as it is shown (get_verbose_service_state)."""
        if settings is None:
            return "deleting"
        wanted = ha_config.wanted(settings)
        if wanted == "ignored" or not exists:
            return "ignored" if wanted == "ignored" else "not found"
        if one is None:
            return "queued"
        kind, vmid = ha_config.kind_of(sid)
        guest = Guest(self.host_of(one["node"]), kind, vmid)
        running = guest.running or one["node"] not in self.online
        if one["state"] == "freeze":
            return "freeze"
        if wanted == "started":
            return "started" if running else "starting"
        return "stopping" if running else "disabled" if wanted == "disabled" else "stopped"


def file_of(host: HostState) -> Path:
    """Where all this is kept."""
    return ha_config.folder_of(host) / FILE


def leave(host: HostState) -> None:
    """A node goes down: its services are frozen until it is back, and started then."""
    manager = HaManager(host)
    about = manager.nodes.get(host.node)
    if about is not None:
        about["mode"] = "restart"
    for sid, one in manager.services.items():
        if one["node"] == host.node:
            kind, vmid = ha_config.kind_of(sid)
            one["due"] = Guest(host, kind, vmid).running
    manager.save()
