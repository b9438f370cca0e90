"""Every state of a handover with everything that can happen in it, and every reason for which a VM doesn't get a card: handover.yaml, row by row."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from homelab.remote.scripts import FOLDER
from remote_scripts.notes.card import Card
from remote_scripts.notes.record import State
from tests.agent import handover_kit
from tests.agent.handover_kit import AUDIO, BIG, CT950, DEVICES, GPU, SERVICE, START, STATE, STOP, VM, Host, made, noted
from tests.rows import rows

TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "handover.yaml").read_text())


def runs_with_it(host: Host) -> None:
    """QEMU has the group's node open."""
    host.write(handover_kit.VM103, "running")
    (host.root / "dev/vfio").mkdir()
    (host.root / "dev/vfio/7").symlink_to("/dev/null")
    (host.root / DEVICES[1:] / GPU / "iommu_group").symlink_to("../../../../kernel/iommu_groups/7")
    handover_kit.thread(host, 77, 77, group="")
    (host.root / "proc/77/task/77/fd/9").symlink_to("/dev/null")


def stopping(host: Host) -> None:
    host.write("/state/system", "stopping\n")


def boot(host: Host) -> None:
    """Drivers have taken everything anew, and a container that is to start at boot runs."""
    for function, driver in ((GPU, "nvidia"), (AUDIO, "snd_hda_intel")):
        host.bind(function, driver)
        host.write(f"{DEVICES}/{function}/driver_override", "\n")
    if (host.root / "kept" / GPU).exists():
        (host.root / "kept" / GPU).rename(host.root / "proc/driver/nvidia/gpus" / GPU)
    host.write(f"{DEVICES}/{GPU}/config", bytes.fromhex("de10852b") + bytes(60))
    host.write("/proc/sys/kernel/random/boot_id", "next\n")
    host.write(CT950, "running")
    host.write("/persistence", "Enabled\n")
    host.write("/drain", "0\n")


def nothing(_: Host) -> None: ...


#: Event -> what is the case, and the call that follows.
EVENTS: dict[str, tuple[Callable[[Host], object], tuple[str, ...]]] = {
    "start": (nothing, START),
    "start of another": (nothing, ("hook", "104", "pre-start")),
    "start of another while the VM runs": (runs_with_it, ("hook", "104", "pre-start")),
    "start of a stranger": (nothing, ("hook", "105", "pre-start")),
    "stop": (nothing, STOP),
    "stop for a reboot": (lambda host: host.write("/run/qemu-server/103.reboot", ""), STOP),
    "stop for a backup": (lambda host: host.write(VM, f"lock: backup\n{host.read(VM)}"), STOP),
    "stop while the host stops": (stopping, STOP),
    "service while the VM is off": (nothing, SERVICE),
    "service while the VM runs": (runs_with_it, SERVICE),
    "service while the VM is locked": (nothing, SERVICE),
    "service while the host stops": (stopping, SERVICE),
    "service after the step has ended": (lambda host: (host.root / "active").unlink(), SERVICE),
    "boot": (boot, SERVICE),
}
#: As the program says it, which says it once.
DEAD = "its configuration space doesn't read as it should after VM 103: no driver is let near it, and its containers stay off"
#: Those of which one state says something of its own.
SPECIAL = {"start of another while the VM runs", "service after the step has ended"}


def put(host: Host, wanted: str) -> None:
    """The host as it is in a state."""
    if wanted == "HOST":
        return
    host.write(STATE, noted(wanted, persistence="Enabled", why=DEAD if wanted == "DEAD" else ""))
    if wanted == "HELD":
        return
    host.owe(950)
    host.write(CT950, "stopped")
    host.write("/persistence", "Disabled\n")
    if wanted == "DRAINING":
        return
    host.write("/drain", "1\n")
    for function in (GPU, AUDIO):
        host.write(f"{DEVICES}/{function}/driver_override", "vfio-pci\n")
        if wanted != "STUCK":
            host.bind(function, "vfio-pci")
        elif function == AUDIO:
            host.unbind(function)
    if wanted == "STUCK":
        host.write("/active", "homelab-handover-big-step_bind.service\n")
    else:
        (host.root / "proc/driver/nvidia/gpus" / GPU).rename(host.root / "kept" / GPU)
    if wanted == "DEAD":
        host.write(f"{DEVICES}/{GPU}/config", b"\xff" * 64)


@rows(
    ("noted", "event", "leads_to"),
    [(noted, event, to) for noted, row in TABLE["transitions"].items() for event, to in row.items()],
)
def test_each_event_in_each_state(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, noted: str, event: str, leads_to: str
) -> None:
    host = made(Host(tmp_path_factory.mktemp("host")), monkeypatch)
    host.cards(Card(name="big", functions=BIG.functions, vms=(103, 104)))
    for vmid in (104, 105):
        host.write(f"/etc/pve/qemu-server/{vmid}.conf", host.read(VM))
    put(host, noted)
    prepare, words = EVENTS[event]
    prepare(host)
    before = host.everything()
    if event.endswith("locked") or words[0] == "hook":
        with host.vm_locked(words[1] if words[1:] else "103"):
            said = host.call(*words)
    else:
        said = host.call(*words)
    assert bool(said) is (leads_to == "refused"), said
    if leads_to in ("same", "refused"):
        assert host.everything() == before, said
        return
    assert not host.two_users()
    if leads_to.startswith("VM"):
        assert host.with_the_vm(), said
        assert json.loads(host.read(STATE))["vm"] == ("104" if "another" in leads_to else "103")
    elif leads_to == "RETURNING":
        assert host.state() == "RETURNING" and "reconcile" in host.asked()
    else:
        assert (host.state() or "HOST") == leads_to and host.at_home(), said


def test_no_event_is_left_out() -> None:
    lacking = {
        f"{noted}: {event}"
        for noted, row in TABLE["transitions"].items()
        for event in EVENTS.keys() - SPECIAL - row.keys()
    }
    assert lacking == set() and {*TABLE["transitions"]} == {*get_args(State)}
    assert {event for row in TABLE["transitions"].values() for event in row} >= SPECIAL


def test_no_refusal_is_left_out() -> None:
    """Of those that can be said: a new one needs its row. What is put into a text is `{}`."""

    def text(node: ast.expr) -> str:
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)

    names = ("cards/card_handover", "cards/card_users", "notes/handover", "tools/processes")
    said = set()
    for module in (*(FOLDER / "cards").glob("hand*.py"), *(FOLDER / f"{name}.py" for name in names)):
        for node in ast.walk(ast.parse(module.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("RefusedError", "SystemExit")
            ):
                said.add(text(node.args[0]))
    of_the_way_back = {"the kernel refuses it", "NVIDIA's driver doesn't take it"}
    said -= {"", "{}", "{} ({})"} | of_the_way_back
    table = set(TABLE["refusals"])
    assert {one for one in said if not any(one.startswith(row) for row in table)} == set(), "what makes these?"
    computed = (
        "this boot of the host isn't confirmed yet",
        "whether this boot of the host is confirmed can't be read",
        "the module {}, which goes with its only",
    )
    left = {row for row in table if not any(one.startswith(row) for one in said) and not row.startswith(computed)}
    assert left == set(), "nothing says these"


@rows("text", TABLE["refusals"])
def test_each_refusal_leaves_everybody_what_they_had(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    row = TABLE["refusals"][text]
    if "in" in row:
        file, _, name = row["in"].partition("::")
        assert f"def {name}(" in (Path(__file__).parent / file).read_text()
        return
    only = bool(row.get("only"))
    host = made(Host(tmp_path_factory.mktemp("host")), monkeypatch, only=only)
    host.write("/var/lib/homelab/handover/.keep", "")
    if row.get("fails"):
        host.fails(row["fails"])
    made_so = f"set -e; G=$ROOT{DEVICES}/{GPU}; {row.get('run', ':')}"
    subprocess.run(["bash", "-c", made_so], env={**os.environ, "ROOT": str(host.root)}, check=True)
    with host.vm_locked():
        said = host.call(*START)
    assert re.search(".*".join(map(re.escape, text.split("{}"))), said), said
    if "not at home" not in row:
        assert host.at_home(only=only) and not host.two_users()
    assert host.state() == ("" if row.get("not noted") else "HELD")
    assert "not noted" not in row or "status/shutdown" not in host.asked(), "its start afterwards can't be noted"
