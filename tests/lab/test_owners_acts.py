"""What a guest's owner does while homelab changes it counts, at whichever moment of the transaction it begins, and however
long it takes.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, LabError
from lab.api.tasks import Tasks
from lab.host.state import HostState
from remote_scripts.notes import owed
from remote_scripts.pve import api
from tests.lab import transaction_kit as kit
from tests.lab.killed_kit import KilledError
from tests.lab.stack_kit import map_card
from tests.sampling import paired, sample

ACTS = ["stop", "shutdown", "start", "edit", "bulk shutdown", "off from inside"]
RUNS = [("qemu", False), ("qemu", True), ("lxc", False), ("lxc", True)]


@pytest.mark.parametrize(("act", "kind", "killed"), [(act, *run) for act, run in paired(ACTS, RUNS, "an owner's acts")])
def test_an_owners_act_at_any_moment_of_a_change_counts(
    kind: str,
    act: str,
    killed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """He stops the guest; shuts it down; stops it and starts it again; edits its configuration; shuts down all guests of the host, which goes on; switches
    it off from inside, before homelab has started it again. `killed`: the run is
    killed in that moment, and the next one goes on. (By root's own shutdown in the very seconds in which a run is killed
    before its own is noted, that can't be told: it is another user's here. A guest of which that can't be told stays off, and that is said. Nor does he
    stop and start it, or switch it off from inside, within the milliseconds between homelab's last look and its shutdown.)
    """
    is_vm, wanted = kind == "qemu", act in ("start", "edit")
    with Lab.start("bound-by-hand" if is_vm else "phoenix", state=tmp_path / "lab") as lab:
        vmid, program = (kit.VM, "qm") if is_vm else (kit.CT, "pct")
        world: Any = (kit.World if is_vm else kit.Containers)(lab, monkeypatch)
        if is_vm:
            map_card(lab)
            lab.run(f"qm stop {vmid}; qm set {vmid} " + " ".join(f"--{key} {line}" for key, line in kit.LINES.items()))
        host = HostState(lab.state)
        path, tasks = f"/nodes/{host.node}/{kind}/{vmid}", Tasks(host)
        moments, chosen, has_acted, unnoted, asked = 0, -1, False, False, b""
        earlier, shutdowns = set[str](), list[str]()

        def settle() -> None:
            while tasks.running():
                time.sleep(0.05)

        def known() -> list[dict[str, Any]]:
            """The guest's tasks, asked for as its owner does: that is no moment of a run."""
            return list(lab.ask_api("GET", f"/nodes/{host.node}/tasks", vmid=vmid, source="all", limit=1000))

        def switched(kinds: tuple[str, ...], user: str = "") -> list[str]:
            """Those of these types that have come in this run and haven't failed, one user's or all."""
            new = [task for task in known() if task["upid"] not in earlier and task["type"] in kinds]
            return [task["upid"] for task in new if user in task["user"] and task["status"] in ("OK", "RUNNING")]

        def owner() -> None:
            nonlocal has_acted, shutdowns
            if act == "off from inside":
                settled = all("endtime" in task for task in known())
                has_acted = settled and world.runs() and not switched(world.kind.starts)
                if has_acted:
                    world.power_off_inside()
                    shutdowns = switched(world.kind.stops)
                return
            if act == "bulk shutdown":
                lab.ask_api("POST", f"/nodes/{host.node}/stopall", "ops@pam", timeout=1)
                return
            if act == "start" and (debt := world.debt()) and not debt.ours:
                return
            has_acted = True
            if act == "edit":
                lab.ask_api("PUT", f"{path}/config", description="his")
                return
            try:
                user = "ops@pam" if killed else "root@pam"
                lab.ask_api("POST", f"{path}/status/{'shutdown' if act == 'shutdown' else 'stop'}", user)
            except LabError:  # Proxmox VE has nothing to do for a container that is off
                has_acted = act == "start"
            if act == "start":
                settle()
                with suppress(LabError):  # homelab was faster
                    lab.ask_api("POST", f"{path}/status/start")

        def count(**_: object) -> None:
            nonlocal moments
            moments += 1
            if moments - 1 == chosen:
                owner()
                if killed:
                    raise KilledError

        def exchange(system: Any, text: bytes) -> bytes:
            nonlocal asked
            first, before = text.partition(b"\r\n")[0], asked
            asked = first
            # As a task is followed, for most of the time, and as a start is waited for: as often as it takes.
            is_watching = (
                b"/tasks/UPID" in text
                or b"%2Ftasks%2FUPID" in text
                or (b"/status/current" in first and first == before)
            )
            [] if is_watching else count()
            answer = kit.World.exchange(world, system, text)
            nonlocal unnoted
            unnoted |= moments == chosen and killed and b"/status/shutdown" in first
            [] if is_watching else count()
            return answer

        def up() -> None:
            world.up(kit.OWN) if is_vm else world.ct()

        monkeypatch.setattr(api, "exchange", exchange)
        monkeypatch.setattr(world, "count", count)
        lab.run(f"{program} start {vmid}", check=False)
        lab.fault("task-seconds", 0.3)
        before, problems = world.conf(), list[str]()
        up()
        for number in sample(range(moments), 2, f"{kind} {act} {killed}"):
            settle()
            chosen = -1
            world.destroy()
            lab.run(f"{program} start {vmid}", check=False)
            lab.ask_api("PUT", f"{path}/config", delete="description")
            if world.conf() != before or not world.runs():
                problems.append(f"{number}: it isn't as before")
            moments, chosen, has_acted, unnoted = 0, number, False, False
            earlier = {task["upid"] for task in known()}
            if killed:
                with pytest.raises(KilledError):
                    up()
                settle()
            capfd.readouterr()
            up()
            settle()
            if act == "bulk shutdown":  # a guest that was off by then isn't among it
                has_acted = bool(switched(world.kind.stops, "ops@pam"))
            if act == "off from inside" and has_acted and switched(world.kind.stops) != shutdowns:
                continue  # in these milliseconds
            if unnoted and wanted and not world.runs():
                if owed.UNKNOWN not in capfd.readouterr().err:
                    problems.append(f"{number}: nobody says that it stays off")
            elif has_acted and (world.runs() is not wanted or not (world.in_force() if is_vm else world.lines())):
                problems.append(f"{number}: it {'runs' if world.runs() else 'is off'}\n{world.conf()}")
            if has_acted and act == "edit" and "his" not in world.conf():
                problems.append(f"{number}: the edit is lost")
        assert not problems, "\n".join(problems)
