"""Container 300 of container_kit.py as the layer container_cards finds it: with pvedaemon, tasks, and Perl."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lab.api.guest_config import GuestConfig
from lab.host.guest_programs import modules
from lab.host.host_python import nodes_below
from remote_scripts.both import container_cards
from remote_scripts.both.terms import Terms
from remote_scripts.guests import change, container, container_follow, guest, requests
from remote_scripts.notes import guest_notes
from remote_scripts.notes.container_note import Cards
from remote_scripts.pve import api
from remote_scripts.pve.container_conf import Method, options_of
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.pve.properties import differing
from remote_scripts.tools.done import Done
from tests.agent import api_kit
from tests.agent.container_kit import CONF, CTID, Containers, without_waits
from tests.agent.kit import Host

NOTE = f"/etc/pve/homelab/lxc-{CTID}"


class Cards300(Containers):
    """The host of a test, and its container. `refusals`: what its shutdown, or its start, ends with; `is_rewritten`:
    Proxmox VE writes its configuration when it goes off.
    """

    is_rewritten = True
    conf_path = f"/etc/pve/nodes/pve/lxc/{CTID}.conf"

    def __init__(self, host: Host) -> None:
        (host.root / "etc/pve/nodes/pve/lxc").mkdir(parents=True)
        (host.root / "etc/pve/local").symlink_to("nodes/pve")
        (host.root / "etc/pve/lxc").symlink_to("local/lxc")
        (host.root / "run/lock/lxc").mkdir(parents=True)
        self.tasks: list[dict[str, Any]] = []
        self.refusals: dict[str, str] = {}
        self.ha: dict[str, Any] = {"managed": 0}
        super().__init__(host)
        self.serve()

    def serve(self) -> None:
        api_kit.serve(self.host, self.answer)
        self.mint, self.host.programs["perl"] = self.host.programs["perl"], self.perl

    def perl(self, arguments: Sequence[str], stdin: bytes) -> Any:
        if [*arguments] == [*api.MINT[1:]]:
            return self.mint(arguments, stdin)
        self.calls.append(["perl"])
        environment = {**os.environ, **modules(self.root / "etc/pve", quorate=True)}
        done = subprocess.run(["perl", *arguments], input=stdin, capture_output=True, env=environment, check=False)
        self.after.get("perl", lambda: None)()
        return Done(done.returncode, done.stdout, done.stderr)

    def answer(self, method: str, path: str, parameters: dict[str, str]) -> Any:
        text = (self.root / CONF[1:]).read_bytes().decode("utf-8", "surrogateescape")
        config = GuestConfig.parse("lxc", text)
        if path == "/hardware/pci":
            return []
        if path == "/tasks":
            return self.tasks
        if path.startswith("/tasks/"):
            task = next(one for one in self.tasks if one["upid"] == path.split("/")[2])
            return [] if path.endswith("/log") else {"status": "stopped", "exitstatus": task["status"]}
        below = path.removeprefix(f"/lxc/{CTID}")
        if below == "/config":
            return config.shown(config.merged_as_shown(), config.current.raw)
        if below == "/pending":
            return config.shown_pending()
        if below == "/status/current":
            return {"status": self.state, "ha": self.ha}
        return self.switched(below.rpartition("/")[2], parameters)

    def switched(self, verb: str, parameters: dict[str, str]) -> str:
        """A task of Proxmox VE's, which has ended when it is answered."""
        self.calls.append([verb])
        said = self.refusals.get(verb, "")
        if verb == "shutdown" and self.is_deaf and parameters.get("forceStop") != "1":
            said = f"command 'lxc-stop -n {CTID} --nokill --timeout 1' failed: exit code 1"
        if not said:
            if verb != "start" and self.state == "running" and self.is_rewritten:
                config = GuestConfig.parse("lxc", self.conf)
                config.apply_pending()
                self.conf = config.text()
            self.state = "running" if verb == "start" else "stopped"
        at, number = int(time.time()), len(self.tasks)
        upid = f"UPID:pve:{number:08X}:0000ABCD:{at:08X}:vz{verb}:{CTID}:root@pam:"
        task = {"upid": upid, "type": f"vz{verb}", "user": "root@pam", "starttime": at, "pstart": number}
        self.tasks.append({**task, "endtime": at, "status": said or "OK"})
        self.after.get(verb, lambda: None)()
        return upid

    def noted(self) -> dict[str, Any]:
        noted: dict[str, Any] = json.loads(self.host.read(NOTE)) if self.host.exists(NOTE) else {}
        return {part: value for part, value in noted.items() if value not in (None, "", 0, False)}

    def note(self, **changes: Any) -> None:
        """Notes something else of it."""
        system = self.host.system()
        guest_notes.write(system, CONTAINER, CTID, replace(guest_notes.of_container(system, CTID), **changes))

    def ask(self, verb: str, **more: Any) -> Any:
        of_terms = {name: more.pop(name) for name in ("power", "otherwise") if name in more}
        terms = Terms(owner=f"p/s/{more.pop('guest', '')}", shutdown=more.pop("timeout", 5), **of_terms)
        of_cards = {name: more.pop(name) for name in ("method", "minors", "functions", "cards") if name in more}
        wanted = container_cards.Wanted(
            ctid=CTID, cards=Cards(**of_cards), terms=terms, goes_away=more.pop("goes_away", False)
        )
        assert not more
        return self.host.ask(verb, "container_cards", wanted)

    def apply(self, method: Method = "device", *cards: str, minors: tuple[int, ...] = ()) -> str:
        self.ask("apply", method=method, cards=cards, minors=minors)
        return self.conf

    def revert(self) -> str:
        self.ask("revert")
        assert self.noted() == {} and not self.left()
        return self.conf

    def drift(self) -> dict[str, str | None]:
        conf, _, decided = container_follow._decided(self.host.system(), CTID)
        return dict(differing(decided.target, options_of(conf)))


def on(box: Cards300, host: Host) -> Cards300:
    """The same container on a copy of its host."""
    copied = copy.copy(box)
    copied.host, copied.root, copied.calls, copied.tasks = host, host.root, [], [*box.tasks]
    host.programs |= {**box.host.programs, "pct": copied.pct}
    copied.serve()
    return copied


@pytest.fixture
def box(host: Host, monkeypatch: pytest.MonkeyPatch) -> Cards300:
    stat, _ = nodes_below(f"{host.root.parent}/")
    monkeypatch.setattr(os, "stat", stat)
    without_waits(monkeypatch)
    for module, name in (
        (change, "_TURN_SECONDS"),
        (requests, "LOCK_SECONDS"),
        (requests, "SILENT_SECONDS"),
        (container, "LOCK_SECONDS"),
        (guest, "_SWITCH_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.0)
    return Cards300(host)
