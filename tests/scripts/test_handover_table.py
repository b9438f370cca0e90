"""Every state of a handover with everything that can happen in it, and every reason for which a VM doesn't get a card: handover.yaml, row by row."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab.remote import scripts
from tests.scripts import handover_kit
from tests.scripts.conftest import Folder
from tests.scripts.handover_kit import at_home, two_users, with_the_vm
from tests.scripts.test_handover import AUDIO, GPU, LINE, STATE, made, state
from tests.scripts.test_handover_kills import vm_locked

TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "handover.yaml").read_text())
LIBRARY = Path(__file__).parents[2] / "remote_scripts/lib/handover"
DEVICE = f"/sys/bus/pci/devices/{GPU}"
TWO = f"{LINE},104"


def call(host: Folder, *words: str) -> subprocess.CompletedProcess[str]:
    text = f"set -- {' '.join(words)}\n" + scripts.compose("handover_host.sh", CARDS=TWO)
    return host.bash(text, parts=())


def runs_with_it(host: Folder) -> None:
    """QEMU has the group's node open."""
    host.write("/vm103", "running\n")
    (host.root / "dev/vfio").mkdir()
    (host.root / "dev/vfio/7").symlink_to("/dev/null")
    (host.root / DEVICE[1:] / "iommu_group").symlink_to("../../../../kernel/iommu_groups/7")
    for name in ("comm", "cgroup", "maps"):
        host.write(f"/proc/77/{name}", "")
    (host.root / "proc/77/fd").mkdir()
    (host.root / "proc/77/fd/9").symlink_to("/dev/null")
    (host.root / "proc/77/task").mkdir()
    (host.root / "proc/77/task/77").symlink_to("..")


def reboot_wanted(host: Folder) -> None:
    host.write("/run/qemu-server/103.reboot", "")


def backup_wanted(host: Folder) -> None:
    conf = host.read("/etc/pve/qemu-server/103.conf")
    host.write("/etc/pve/qemu-server/103.conf", f"lock: backup\n{conf}")


def stopping(host: Folder) -> None:
    host.command("systemctl", "echo stopping")


def came_to_its_end(host: Folder) -> None:
    """The step that waited in the kernel."""
    (host.root / "active").unlink()


def boot(host: Folder) -> None:
    """Drivers have taken everything anew, and a container that is to start at boot runs."""
    for function, driver in ((GPU, "nvidia"), (AUDIO, "snd_hda_intel")):
        place = host.root / "sys/bus/pci/devices" / function
        (place / "driver").unlink(missing_ok=True)
        (place / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
        (place / "driver_override").write_text("\n")
    if (host.root / "kept" / GPU).exists():
        (host.root / "kept" / GPU).rename(host.root / "proc/driver/nvidia/gpus" / GPU)
    (host.root / DEVICE[1:] / "config").write_bytes(bytes.fromhex("de10852b") + bytes(60))
    host.write("/proc/sys/kernel/random/boot_id", "next\n")
    host.write("/ct950", "running\n")
    host.write("/persistence", "Enabled\n")
    host.write("/drain", "0\n")


def nothing(_: Folder) -> None: ...


START, STOP, SERVICE = ("hook", "103", "pre-start"), ("hook", "103", "post-stop"), ("reconcile",)
#: Event -> what is the case, and the call that follows.
EVENTS: dict[str, tuple[Callable[[Folder], None], tuple[str, ...]]] = {
    "start": (nothing, START),
    "start of another": (nothing, ("hook", "104", "pre-start")),
    "start of another while the VM runs": (runs_with_it, ("hook", "104", "pre-start")),
    "start of a stranger": (nothing, ("hook", "105", "pre-start")),
    "stop": (nothing, STOP),
    "stop for a reboot": (reboot_wanted, STOP),
    "stop for a backup": (backup_wanted, STOP),
    "stop while the host stops": (stopping, STOP),
    "service while the VM is off": (nothing, SERVICE),
    "service while the VM runs": (runs_with_it, SERVICE),
    "service while the VM is locked": (nothing, SERVICE),
    "service while the host stops": (stopping, SERVICE),
    "service after the step has ended": (came_to_its_end, SERVICE),
    "boot": (boot, SERVICE),
}
#: Those of which one state says something of its own.
SPECIAL = {"start of another while the VM runs", "service after the step has ended"}


def put(host: Folder, wanted: str) -> None:
    """The host as it is in a state."""
    if wanted == "HOST":
        return
    noted = f"state={wanted}\nvm=103\nboot=boot\nsince=1\nwhy=\ncontainers=950\nnumbers=0,508,,\nmodules=\npersistence=Enabled\nunits=\n"
    host.write(STATE, noted if wanted != "HELD" else noted.replace("containers=950", "containers="))
    if wanted == "HELD":
        return
    host.write("/ct950", "stopped\n")
    host.write("/persistence", "Disabled\n")
    if wanted == "DRAINING":
        return
    host.write("/drain", "1\n")
    if wanted == "FREE":
        return
    for function in (GPU, AUDIO):
        place = host.root / "sys/bus/pci/devices" / function
        (place / "driver_override").write_text("vfio-pci\n")
        if wanted != "STUCK" or function == AUDIO:
            (place / "driver").unlink()
        if wanted != "STUCK":
            (place / "driver").symlink_to("../../../../bus/pci/drivers/vfio-pci")
    if wanted == "STUCK":
        host.write("/active", "homelab-handover-big-step_unbind.service\n")
    else:
        (host.root / "proc/driver/nvidia/gpus" / GPU).rename(host.root / "kept" / GPU)
    if wanted == "DEAD":
        (host.root / DEVICE[1:] / "config").write_bytes(b"\xff" * 64)


def everything(host: Folder) -> list[str]:
    return [one for one in handover_kit.everything(host.root) if not one.startswith(("run/", "asked"))]


@pytest.mark.parametrize(
    ("noted", "event", "leads_to"),
    [(noted, event, to) for noted, row in TABLE["transitions"].items() for event, to in row.items()],
)
def test_each_event_in_each_state(folder: Folder, noted: str, event: str, leads_to: str) -> None:
    host = handover_kit.with_a_kernel(made(folder))
    for vmid in (104, 105):
        host.write(f"/etc/pve/qemu-server/{vmid}.conf", host.read("/etc/pve/qemu-server/103.conf"))
    put(host, noted)
    prepare, words = EVENTS[event]
    prepare(host)
    before = everything(host)
    if event.endswith("locked") or words[0] == "hook":
        with vm_locked(host, words[1] if words[1:] else "103"):
            done = call(host, *words)
    else:
        done = call(host, *words)
    said = done.stdout + done.stderr
    assert (done.returncode == 1) is (leads_to == "refused"), said
    if leads_to in ("same", "refused"):
        assert everything(host) == before, said
        return
    assert not two_users(host)
    if leads_to.startswith("VM"):
        assert with_the_vm(host), said
        assert f"vm={104 if 'another' in leads_to else 103}\n" in host.read(STATE)
    elif leads_to == "RETURNING":
        assert state(host) == "RETURNING" and "reconcile" in host.read("/asked")
    else:
        assert (state(host) or "HOST") == leads_to and at_home(host), said


def test_no_event_is_left_out() -> None:
    lacking = {
        f"{noted}: {event}"
        for noted, row in TABLE["transitions"].items()
        for event in EVENTS.keys() - SPECIAL - row.keys()
    }
    assert lacking == set()
    text = (LIBRARY / "state.sh").read_text() + (LIBRARY / "back.sh").read_text()
    assert set(re.findall(r"\b(?!NAME\b)[A-Z]{4,}\b", re.findall(r"# host\. state:.*?numbers", text, re.S)[0])) <= {
        *TABLE["transitions"],
        "VALUE",
    }
    assert {event for row in TABLE["transitions"].values() for event in row} >= SPECIAL


def test_no_refusal_is_left_out() -> None:
    """Of those that a script can say: a new one needs its row."""
    said = {
        found[1]
        for path in LIBRARY.glob("*.sh")
        for found in re.finditer(r'REFUSED\+?="(?:\$\{REFUSED:\+; \})?([^"$]?[^"]*)', path.read_text())
    }
    rows = set(TABLE["refusals"])
    unknown = {text for text in said if not any(text.startswith(row) for row in rows)}
    assert unknown == set(), "what makes these?"
    assert {row for row in rows if not any(text.startswith(row) for text in said)} == set(), "nothing says these"


@pytest.mark.parametrize("text", TABLE["refusals"])
def test_each_refusal_leaves_everybody_what_they_had(folder: Folder, text: str) -> None:
    row = TABLE["refusals"][text]
    if "in" in row:
        file, _, name = row["in"].partition("::")
        assert f"def {name}(" in (Path(__file__).parents[1] / file).read_text()
        return
    host = handover_kit.with_a_kernel(made(folder), only=bool(row.get("only")))
    host.write("/var/lib/homelab/handover/.keep", "")
    host.write("/fails", row.get("fails", "") + "\n")
    if row.get("fails", "").startswith("stat "):
        handover_kit.with_a_stat_that_can_fail(host)
    made_so = f"set -e; G=$ROOT{DEVICE}; {row.get('run', ':')}"
    subprocess.run(["bash", "-c", made_so], env=host.environment, check=True)
    with vm_locked(host):
        done = call(host, "hook", "103", "pre-start")
    told = text.partition("$")[0] if not text.startswith("$") else text.partition(" ")[2]
    assert done.returncode == 1 and told in done.stdout, done.stdout + done.stderr
    if "not at home" not in row:
        assert at_home(host, only=bool(row.get("only"))) and not two_users(host)
    assert state(host) == ("" if row.get("not noted") else "HELD")
