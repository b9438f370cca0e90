"""What hands a card from containers to a VM and back, on a folder: who has a card open, which VM names it, what comes between.

Its states, events and refusals: test_handover_table.py. Killed at its commands: test_handover_kills.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import scripts
from tests.boot_layers import read_host
from tests.kept_systems import KeptSystems
from tests.scripts.conftest import Folder, empty_folder
from tests.scripts.test_run_guard import HELD, answer
from tests.scripts.test_run_guard import run as holding
from tests.waiting import wait_until

GPU, AUDIO, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"
LINE = f"big {GPU}=10de:2b85,{AUDIO}=10de:22e8 103"
STATE = "/var/lib/homelab/handover/big.state"
# What happens to a function when a step is done, and what a person's and Proxmox VE's programs say.
COMMANDS = {
    "systemd-run": f"""\
echo "$*" >>"$ROOT/asked"
while [[ $1 == -* ]]; do [[ $1 != -p ]] || shift; shift; done
[[ $1 != pct ]] || exec "$@"
bus=$ROOT/sys/bus/pci
[[ $2 == step_* ]] || exit 0
[[ ! -e $ROOT/hangs || $2 != "$(<"$ROOT/hangs")" ]] || {{ echo "homelab-handover-big-$2.service" >>"$ROOT/active"; exit 124; }}
[[ ! -e $ROOT/late || $2 != step_claim ]] || mv "$ROOT/late" "$ROOT/proc/43"
for f in {GPU} {AUDIO}; do
  link=$bus/devices/$f/driver now= wants=nvidia
  [[ ! -L $link ]] || for driver in "$bus"/drivers/*; do [[ ! $link -ef $driver ]] || now=${{driver##*/}}; done
  [[ $f == {GPU} ]] || wants=snd_hda_intel
  [[ $(<"$bus/devices/$f/driver_override") != vfio-pci ]] || wants=vfio-pci
  override=$bus/devices/$f/driver_override
  case $2 in
    step_claim) echo vfio-pci >"$override" ;;
    step_unbind) [[ -z $now || $now == vfio-pci ]] || rm "$link" ;;
    step_release) [[ $now != vfio-pci ]] || rm "$link"; echo >"$override" ;;
    step_bind | step_attach)
      [[ -n $now ]] || ln -s "../../../../bus/pci/drivers/$wants" "$link"
      [[ $2 == step_bind ]] || echo >"$override"
      ;;
  esac
done
""",
    "nvidia-smi": f"""\
[[ $ROOT/sys/bus/pci/devices/{GPU}/driver -ef $ROOT/sys/bus/pci/drivers/nvidia ]] || exit 6
case "$*" in
  *persistence_mode*) echo "$(<"$ROOT/persistence")" ;;
  *-pm*) if [[ ${{*: -1}} == 1 ]]; then echo Enabled; else echo Disabled; fi >"$ROOT/persistence" ;;
  *pci.bus_id*) [[ ! -e $ROOT/ails ]] || exit 9 ;;
  drain*-q*) [[ $(<"$ROOT/drain") == 1 ]] || echo -n "not "; echo draining. ;;
  drain*) echo "${{*: -1}}" >"$ROOT/drain" ;;
  *) echo there ;;
esac
""",
    "pct": """\
case $1 in
  status)
    [[ -e $ROOT/etc/pve/lxc/$2.conf ]] || { echo "Configuration file 'nodes/pve/lxc/$2.conf' does not exist"; exit 2; }
    echo "status: $(<"$ROOT/ct$2")"
    ;;
  shutdown) echo stopped >"$ROOT/ct$2" ;;
  start) [[ ! -e $ROOT/ails ]] || exit 9; echo running >"$ROOT/ct$2" ;;
esac
""",
    "qm": 'echo "status: stopped"',
    "systemctl": r"""
case "$*" in
  is-system-running) echo running ;;
  *is-active*)
    [[ -e $ROOT/active ]] || exit 3
    active=$'\n'$(<"$ROOT/active")$'\n'
    for unit; do [[ $active != *$'\n'"$unit"$'\n'* ]] || exit 0; done
    exit 3
    ;;
  *is-failed*) exit 1 ;;
esac
""",
    "modprobe": "",
    "mknod": 'for path in "$@"; do [[ $path != "$ROOT"/dev/* ]] || : >"$path"; done',
    "sleep": "",
}


@pytest.fixture
def host(folder: Folder) -> Folder:
    return made(folder)


@pytest.fixture
def lent(kept_systems: KeptSystems) -> Folder:
    """The same, with the card lent to the VM."""

    def make(place: Path) -> Folder:
        host = made(empty_folder(place))
        run(host, "hook", "103", "pre-start")
        return host

    return just_now(kept_systems.take("lent by hook", make))


def just_now(host: Folder) -> Folder:
    """What is noted there was noted now, also where the host was kept for a while."""
    host.write(STATE, re.sub(r"(?m)^since=\d+$", f"since={int(time.time())}", host.read(STATE)))
    return host


def made(folder: Folder) -> Folder:
    """A card of two functions, of two with the driver, and container 950, which runs with it."""
    for name, text in COMMANDS.items():
        folder.command(name, text)
    bus = "/sys/bus/pci/devices"
    for driver in ("nvidia", "vfio-pci", "snd_hda_intel", "amdgpu"):
        (folder.root / f"sys/bus/pci/drivers/{driver}").mkdir(parents=True)
    for address, ids, driver in (
        (GPU, "10de:2b85", "nvidia"),
        (AUDIO, "10de:22e8", "snd_hda_intel"),
        (OTHER, "10de:2684", "nvidia"),
    ):
        vendor, device = ids.split(":")
        folder.write(f"{bus}/{address}/vendor", f"0x{vendor}\n")
        folder.write(f"{bus}/{address}/device", f"0x{device}\n")
        folder.write(f"{bus}/{address}/driver_override", "\n")
        content = bytes.fromhex(vendor)[::-1] + bytes.fromhex(device)[::-1] + bytes(60)
        (folder.root / bus.lstrip("/") / address / "config").write_bytes(content)
        (folder.root / bus.lstrip("/") / address / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
    folder.write(f"/proc/driver/nvidia/gpus/{GPU}/information", "Device Minor: \t 0\n")
    folder.write("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.105.08\n")
    folder.write("/proc/devices", "Character devices:\n195 nvidia\n508 nvidia-uvm\n\nBlock devices:\n")
    folder.write("/proc/sys/kernel/random/boot_id", "boot\n")
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"):
        folder.write(f"/dev/{name}", "")
    folder.write("/etc/pve/lxc/950.conf", "hostname: media\ndev0: /dev/nvidia0\n")
    folder.write("/etc/pve/qemu-server/103.conf", "name: gaming\nhostpci0: mapping=big,driver=keep,pcie=1\n")
    folder.write("/ct950", "running\n")
    folder.write("/persistence", "Enabled\n")
    folder.write("/drain", "0\n")
    return folder


def program(*words: str) -> str:
    return f"set -- {' '.join(words)}\n" + scripts.compose("handover_host.sh", CARDS=LINE)


def drivers(host: Folder) -> list[str]:
    links = [host.root / "sys/bus/pci/devices" / one / "driver" for one in (GPU, AUDIO, OTHER)]
    return [link.readlink().name if link.is_symlink() else "" for link in links]


def is_with_the_host(host: Folder) -> bool:
    overrides = {host.read(f"/sys/bus/pci/devices/{one}/driver_override").strip() for one in (GPU, AUDIO)}
    return (
        drivers(host) == ["nvidia", "snd_hda_intel", "nvidia"]
        and overrides == {""}
        and (host.read("/ct950"), host.read("/persistence"), host.read("/drain")) == ("running\n", "Enabled\n", "0\n")
    )


def state(host: Folder) -> str:
    return host.read(STATE).splitlines()[0].removeprefix("state=") if (host.root / STATE.lstrip("/")).exists() else ""


def run(host: Folder, *words: str) -> None:
    done = host.bash(program(*words), parts=())
    assert done.returncode == 0, done.stdout + done.stderr


def taken(host: Folder) -> bool:
    return drivers(host) == ["vfio-pci", "vfio-pci", "nvidia"] and (state(host), host.read("/ct950")) == (
        "VM",
        "stopped\n",
    )


def test_a_dead_card_stays_dead_after_a_boot_that_did_not_help(host: Folder) -> None:
    config = host.root / f"sys/bus/pci/devices/{GPU}/config"
    before = config.read_bytes()
    config.write_bytes(b"\xff" * 64)
    host.write(STATE, "state=DEAD\nvm=103\nboot=another\nsince=1\n")
    run(host, "reconcile")
    assert state(host) == "DEAD"
    assert "DEAD" in refused(host, "hook", "103", "pre-start")
    config.write_bytes(before)
    run(host, "reconcile")
    assert state(host) == ""


def test_a_dead_card_stands_against_everything_until_the_host_is_started(host: Folder) -> None:
    host.write(STATE, "state=DEAD\nvm=103\nboot=boot\nsince=1\n")
    run(host, "reconcile")
    assert state(host) == "DEAD", "in the same boot nothing is tried"
    done = host.run("revert", scripts.handover([LINE]))
    assert done.returncode != 0 and "DEAD" in done.stdout + done.stderr
    # A boot that doesn't help: drivers have been loaded since, and a destroy goes on, as does an up without the card.
    (host.root / f"sys/bus/pci/devices/{GPU}/config").write_bytes(b"\xff" * 64)
    host.write("/proc/sys/kernel/random/boot_id", "next\n")
    run(host, "reconcile")
    assert state(host) == "DEAD"
    done = host.run("revert", scripts.handover([LINE]))
    assert done.returncode == 0 and state(host) == "", done.stdout + done.stderr


@pytest.mark.parametrize("now", ["gone", "another"])
def test_a_dead_card_that_was_taken_out_or_replaced_is_forgotten_with_the_boot(host: Folder, now: str) -> None:
    host.write(STATE, "state=DEAD\nvm=103\nboot=before\nsince=1\n")
    place = host.root / f"sys/bus/pci/devices/{GPU}"
    if now == "gone":
        place.rename(host.root / "taken-out")
    else:
        (place / "device").write_text("0x2684\n")
        (place / "config").write_bytes(bytes.fromhex("de108426") + bytes(60))
    run(host, "reconcile")
    assert state(host) == ""


@pytest.mark.parametrize("read", ["nothing", "another"])
def test_a_card_is_dead_only_where_something_else_was_read_again_and_again(lent: Folder, read: str) -> None:
    answers = {"nothing": "exit 1", "another": "echo ' ff ff ff ff'"}
    lent.command("od", answers[read])
    run(lent, "reconcile")
    assert state(lent) == ("DEAD" if read == "another" else "VM") and drivers(lent)[0] == "vfio-pci"
    if read == "nothing":
        lent.command("od", 'PATH=/usr/bin:/bin exec od "$@"')
        run(lent, "reconcile")
        assert is_with_the_host(lent) and state(lent) == ""


def test_a_card_that_answers_at_the_second_look_is_alive(lent: Folder) -> None:
    lent.command("od", 'if mkdir "$ROOT/looked"; then echo " ff ff ff ff"; else PATH=/usr/bin:/bin exec od "$@"; fi')
    run(lent, "reconcile")
    assert is_with_the_host(lent) and state(lent) == ""


def test_a_full_disk_keeps_the_card_where_it_is(host: Folder) -> None:
    host.write("/var/lib/homelab/handover", "a file where the folder is to be")
    done = host.bash(program("hook", "103", "pre-start"), parts=())
    assert done.returncode == 1 and "can't be noted on the disk" in done.stdout and is_with_the_host(host)


# -- who has it ------------------------------------------------------------------------------------------------------
LOOK = """\
read_card big; RUN=$ROOT/run; set +e; trap - ERR EXIT
find_holders "$ROOT/dev/control" 1:3 && printf '%s\\n' "${HOLDERS[@]}" || echo "failed: $LOOK_FAILED"
"""


def one_thread(host: Folder, pid: int) -> None:
    """The process's only thread has what the process has."""
    (host.root / f"proc/{pid}/task").mkdir(parents=True)
    (host.root / f"proc/{pid}/task/{pid}").symlink_to("..")


def look(host: Folder, *pids: int) -> str:
    """What is found of processes that have a device open; its numbers are 1:3."""
    (host.root / "dev/control").unlink(missing_ok=True)
    (host.root / "dev/control").symlink_to("/dev/zero")
    for pid in pids:
        host.write(f"/proc/{pid}/comm", "ollama\n")
        host.write(f"/proc/{pid}/cgroup", "0::/lxc/950/ns/system.slice/ollama.service\n")
        host.write(f"/proc/{pid}/maps", "")
        (host.root / f"proc/{pid}/fd").mkdir()
        (host.root / f"proc/{pid}/fd/3").symlink_to("/dev/null")
        one_thread(host, pid)
    return host.sourced("handover_host.sh", LOOK, CARDS=LINE).stdout.strip()


def test_who_has_it_open_is_named_with_its_container(host: Folder) -> None:
    assert look(host) == ""
    assert look(host, 41, 42) == "ollama (PID 41 of container 950)\nollama (PID 42 of container 950)"


def test_memory_that_is_mapped_counts_without_a_descriptor(host: Folder) -> None:
    host.write("/proc/43/maps", "7f00-7f01 rw-s 00000000 00:05 103 /dev/nvidia0\n")
    host.write("/proc/44/maps", "7f00-7f01 rw-s 00000000 00:05 103 /dev/nvidia01\n")
    for pid in (43, 44):
        one_thread(host, pid)
    assert look(host) == "? (PID 43)"


def test_a_process_whose_first_thread_has_ended_is_seen(host: Folder) -> None:
    """The kernel then shows neither open files nor memory but under its other threads."""
    look(host)
    for pid in (51, 52):
        host.write(f"/proc/{pid}/comm", "train\n")
        for thread in (pid, pid + 100, pid + 200):
            (host.root / f"proc/{pid}/task/{thread}/fd").mkdir(parents=True)
            host.write(f"/proc/{pid}/task/{thread}/maps", "")
    (host.root / "proc/51/task/151/fd/3").symlink_to("/dev/null")
    for thread in (152, 252):
        host.write(f"/proc/52/task/{thread}/maps", "7f00-7f01 rw-s 00000000 00:05 103 /dev/nvidia0\n")
    found = host.sourced("handover_host.sh", LOOK, CARDS=LINE).stdout.splitlines()
    assert found == ["train (PID 51)", "train (PID 52)"]


def test_a_descriptor_that_is_closed_meanwhile_is_nobodys(host: Folder) -> None:
    look(host, 41)
    (host.root / "proc/41/fd/4").symlink_to("nothing")
    assert look(host) == "ollama (PID 41 of container 950)"


@pytest.mark.parametrize(
    "harm",
    [
        'find() { :; }; export -f find; bash() { echo "find: Permission denied" >&2; }',
        "bash() { return 0; }",
        "bash() { return 124; }",
        "bash() { kill -9 $BASHPID; }",
    ],
)
def test_a_look_that_fails_says_so(host: Folder, harm: str) -> None:
    text = harm.replace("bash()", "bounded()").replace("$BASHPID", "$BASHPID")
    if "kill" in text:
        text = "bounded() { return 137; }"
    found = host.sourced("handover_host.sh", f"{text}\n{LOOK}", CARDS=LINE).stdout
    assert found.startswith("failed: ")


@pytest.mark.parametrize(
    ("command", "text"), [("stat", "exit 1"), ("find", "exit 1"), ("stat", "echo 1:3; exit 0"), ("grep", "exit 2")]
)
def test_a_look_by_a_broken_program_says_so(host: Folder, command: str, text: str) -> None:
    look(host)
    host.command(command, text)
    assert host.sourced("handover_host.sh", LOOK, CARDS=LINE).stdout.startswith("failed: ")


def test_what_hangs_in_the_kernel_holds_nobody_who_reads_what_is_said(host: Folder) -> None:
    os.mkfifo(host.root / "wakes")
    harm = 'within() { read -r _ <"$ROOT/wakes"; }; GRACE_SECONDS=0; set +e; trap - ERR EXIT; RUN=$ROOT/run'
    done = host.sourced("handover_host.sh", f'{harm}; bounded 1 nvidia-smi; echo "status $?"', CARDS=LINE)
    assert done.stdout == "status 124\n", "and the pipe has ended, although what was started goes on"
    host.write("/wakes", "\n")


# -- which VM names it -----------------------------------------------------------------------------------------------
MAPPINGS = "big\n\tmap id=10de:2b85,node=pve,path=0000:01:00\nother\n\tmap id=10de:2684,node=pve,path=0000:02:00\n"


def test_of_a_mapping_the_lines_of_this_node_count(host: Folder) -> None:
    lines = "shared\n\tmap id=10de:2b85,node=other,path=0000:01:00\n\tmap id=10de:2684,node=pve,path=0000:02:00\n"
    host.write("/etc/pve/mapping/pci.cfg", lines)
    host.write("/etc/pve/qemu-server/104.conf", "hostpci0: mapping=shared,pcie=1\n")
    asked = "read_card big; names_card 104 && echo named || echo not"
    assert host.sourced("handover_host.sh", asked, CARDS=LINE).stdout == "named\n", "which node this is isn't known"
    for node, says in (("pve", "not\n"), ("other", "named\n")):
        (host.root / "etc/pve/local").unlink(missing_ok=True)
        (host.root / "etc/pve/local").symlink_to(f"nodes/{node}")
        assert host.sourced("handover_host.sh", asked, CARDS=LINE).stdout == says


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("hostpci0: mapping=big,pcie=1", True),
        ("hostpci1: pcie=1,mapping=other", False),
        ("hostpci0: mapping=unknown", True),
        ("hostpci0: 0000:01:00,pcie=1", True),
        ("hostpci0: host=01:00.0;01:00.1,pcie=1", True),
        ("hostpci0: 02:00,pcie=1", False),
        ("name: 01:00", False),
        ("[snapshot]\nhostpci0: 0000:01:00", False),
    ],
)
def test_a_vm_that_names_the_card_is_known(host: Folder, option: str, named: bool) -> None:
    host.write("/etc/pve/mapping/pci.cfg", MAPPINGS)
    for vmid in (103, 104):
        host.write(f"/etc/pve/qemu-server/{vmid}.conf", f"{option}\n")
    ours = host.bash(program("hook", "103", "pre-start"), parts=())
    assert ours.returncode == 0 and (state(host) == "VM") is named
    stranger = host.bash(program("hook", "104", "pre-start"), parts=())
    assert (stranger.returncode, "VM 104 names gpus.big" in stranger.stdout) == ((1, True) if named else (0, False))


def test_a_card_that_is_on_vfio_pci_already_is_no_handover(host: Folder) -> None:
    for address in (GPU, AUDIO):
        link = host.root / "sys/bus/pci/devices" / address / "driver"
        link.unlink()
        link.symlink_to("../../../../bus/pci/drivers/vfio-pci")
    run(host, "hook", "103", "pre-start")
    assert state(host) == "" and host.read("/ct950") == "running\n"


@pytest.mark.parametrize(("boot", "refused"), [("boot", False), ("before", True)])
def test_a_boot_that_is_not_confirmed_yet_keeps_the_card(host: Folder, boot: str, refused: bool) -> None:
    host.write("/var/lib/homelab/armed", f"boot {boot}\n")
    done = host.bash(program("hook", "103", "pre-start"), parts=())
    assert (done.returncode == 1) is refused and ("isn't confirmed yet" in done.stdout) is refused


def test_a_card_does_not_sleep_too_deep_while_it_is_away(host: Folder) -> None:
    attributes = [f"/sys/bus/pci/devices/{one}/d3cold_allowed" for one in (GPU, AUDIO)]
    for path, value in zip(attributes, ("1\n", "0\n"), strict=True):
        host.write(path, value)
    run(host, "hook", "103", "pre-start")
    assert f"d3cold={GPU}\n" in host.read(STATE).replace(" \n", "\n")
    host.sourced("handover_host.sh", "step_claim big", CARDS=LINE)
    assert [host.read(path) for path in attributes] == ["0\n", "0\n"]
    host.sourced("handover_host.sh", "step_attach big || :", CARDS=LINE)
    assert [host.read(path) for path in attributes] == ["1\n", "0\n"], "what somebody has set stays"


# -- several VMs -----------------------------------------------------------------------------------------------------
def test_of_several_vms_the_first_has_it_and_the_others_are_told(host: Folder) -> None:
    two = scripts.compose("handover_host.sh", CARDS=f"{LINE},104")
    host.write("/etc/pve/qemu-server/104.conf", "name: work\nhostpci0: mapping=big,driver=keep,pcie=1\n")
    host.command("qm", 'echo "status: $(cat "$ROOT/vm$2")"')
    for vmid in (103, 104):
        host.write(f"/vm{vmid}", "stopped\n")

    def began(vmid: int) -> str:
        done = host.bash(f"set -- hook {vmid} pre-start\n{two}", parts=())
        host.write(f"/vm{vmid}", "stopped\n" if done.returncode else "running\n")
        return done.stdout if done.returncode else ""

    assert began(103) == "" and taken(host)
    assert "VM 103 has it since" in began(104) and taken(host) and "vm=103" in host.read(STATE)
    # It has ended, and nobody has given the card back yet: the next one takes it, and the containers are started in the end.
    host.write("/vm103", "stopped\n")
    assert began(104) == "" and taken(host) and "vm=104" in host.read(STATE) and "containers=950" in host.read(STATE)
    host.write("/vm104", "stopped\n")
    host.bash(f"set -- reconcile\n{two}", parts=())
    assert is_with_the_host(host) and state(host) == ""


def test_of_two_starts_at_the_same_time_one_gets_it(host: Folder) -> None:
    two = scripts.compose("handover_host.sh", CARDS=f"{LINE},104")
    host.write("/etc/pve/qemu-server/104.conf", "name: work\nhostpci0: mapping=big,driver=keep,pcie=1\n")
    host.command("qm", 'echo "status: running"')  # what is being started is no more than that
    begun = [
        subprocess.Popen(
            ["bash", "-c", f"set -- hook {vmid} pre-start\n{two}"], env=host.environment, stdout=subprocess.PIPE
        )
        for vmid in (103, 104)
    ]
    said = [process.communicate()[0].decode() for process in begun]
    assert sorted(process.returncode for process in begun) == [0, 1], said
    assert "has it since" in "".join(said) and taken(host)


@pytest.mark.parametrize(
    "words",
    ["", "103", "103 nothing", "x pre-start", "'' pre-start", "'103; touch $ROOT/cut' pre-start", "../103 post-stop"],
)
def test_a_call_with_garbage_does_nothing(host: Folder, words: str) -> None:
    host.bash(program("hook", words), parts=())
    assert is_with_the_host(host) and state(host) == "" and not (host.root / "cut").exists()


# -- what is no card to be handed over -------------------------------------------------------------------------------
def test_a_card_that_is_divided_and_one_that_the_console_draws_on_stay(host: Folder) -> None:
    host.command("nvidia-smi", 'case "$*" in *mig.mode*) echo Enabled; exit ;; esac\n' + COMMANDS["nvidia-smi"])
    assert "MIG is on" in refused(host, "hook", "103", "pre-start")
    host.command("nvidia-smi", COMMANDS["nvidia-smi"])
    (host.root / f"sys/bus/pci/devices/{GPU}/graphics/fb0").mkdir(parents=True)
    for number, name, bound in ((0, "(S) dummy device", 0), (1, "(M) frame buffer device", 1)):
        host.write(f"/sys/class/vtconsole/vtcon{number}/name", f"{name}\n")
        host.write(f"/sys/class/vtconsole/vtcon{number}/bind", f"{bound}\n")
    assert "the host's console draws on it (fb0)" in refused(host, "hook", "103", "pre-start")
    assert is_with_the_host(host) and "shutting" not in host.read("/var/lib/homelab/handover/log")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("run/qemu-server/pci-id-reservations", "which VM has it can't be read"),
        (f"sys/bus/pci/devices/{GPU}/boot_vga", "whether it is this host's screen can't be read"),
        ("sys/class/vtconsole/vtcon1/name", "the host's console draws on it (fb0)"),
        ("etc/pve/lxc/950.conf", "the configuration of container 950 can't be read"),
        ("etc/pve/ha/resources.cfg", "is under HA"),
    ],
)
def test_what_cant_be_read_keeps_the_card_with_the_host(host: Folder, path: str, words: str) -> None:
    """Nobody's, by what can be read, is no "nobody": each of these is a folder here."""
    (host.root / f"sys/bus/pci/devices/{GPU}/graphics/fb0").mkdir(parents=True)
    host.write("sys/class/vtconsole/vtcon0/name", "(S) dummy device\n")
    host.write("sys/class/vtconsole/vtcon0/bind", "1\n")
    (host.root / path).unlink(missing_ok=True)
    (host.root / path).mkdir(parents=True)
    assert words in refused(host, "hook", "103", "pre-start")
    assert is_with_the_host(host) and "shutting" not in host.read("/var/lib/homelab/handover/log")


def test_a_zero_byte_hides_no_container_that_has_the_card(host: Folder) -> None:
    conf = host.root / "etc/pve/lxc/950.conf"
    conf.write_bytes(b"#a\0b\n" + conf.read_bytes())
    assert start(host)[0] == 0
    assert "shutting container 950 down" in host.read("/var/lib/homelab/handover/log")


# -- where the hookscript lies ---------------------------------------------------------------------------------------
STORAGES = """\
dir: other
	path /mnt/other
	content snippets,iso

dir: nas
	path /mnt/nas
	content snippets
	shared 1

lvmthin: local-lvm
	content images

dir: local
	path /var/lib/vz
	content {}
"""


@pytest.mark.parametrize(
    ("content", "found"), [("iso,snippets", "local /var/lib/vz/snippets"), ("iso", "other /mnt/other/snippets")]
)
def test_a_storage_of_the_host_alone_is_chosen(host: Folder, content: str, found: str) -> None:
    host.write("/etc/pve/storage.cfg", STORAGES.format(content))
    done = host.bash('find_snippets; echo "$STORAGE $SNIPPETS"', parts=("handover/rest",))
    assert done.stdout.strip() == found


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("nodes pve2", "other"),
        ("nodes pve2,pve", "local"),
        ("nodes pve2 pve", "local"),
        ("disable 0", "local"),
        ("disable", "other"),
    ],
)
def test_a_storage_of_other_nodes_is_none_of_this_host(host: Folder, nodes: str, found: str) -> None:
    (host.root / "etc/pve/local").symlink_to("nodes/pve")
    host.write("/etc/pve/storage.cfg", STORAGES.format(f"snippets\n\t{nodes}"))
    host.write("/var/lib/vz/snippets/homelab-handover.sh", "", 0o755)
    host.write("/etc/pve/qemu-server/103.conf", "hookscript: local:snippets/homelab-handover.sh\n")
    done = host.bash('find_snippets; echo "$STORAGE"; has_hook 103 || echo lost', parts=("handover/rest",))
    assert done.stdout.split() == [found, *["lost"] * (found != "local")], done.stderr


def test_a_vm_names_the_script_where_it_lies(host: Folder) -> None:
    """Somebody takes snippets from the storage, or the storage away: the VM would not start any more."""
    place = "/var/lib/vz/snippets/homelab-handover.sh"
    host.command(
        "qm",
        'cd "$ROOT/etc/pve/qemu-server" && sed -i "/^hookscript:/d" "$2.conf" && echo "hookscript: $4" >>"$2.conf"',
    )
    host.write("/etc/pve/storage.cfg", STORAGES.format("iso"))
    for verb, script in (("apply", scripts.handover([LINE])), ("apply", scripts.handover_hook(103))):
        assert host.run(verb, script).returncode == 0
    assert "hookscript: other:snippets/" in host.read("/etc/pve/qemu-server/103.conf")
    assert handed_over(host)["lost_hooks"] == []
    host.write("/etc/pve/storage.cfg", STORAGES.format("snippets"))
    again = host.run("apply", scripts.handover_hook(103))
    assert '"changed":"no"' in again.stdout, "it stays where it lies"
    host.write("/etc/pve/storage.cfg", STORAGES.format("snippets").replace("content snippets,iso", "content iso"))
    assert handed_over(host)["lost_hooks"] == ["103"]
    early = host.run("apply", scripts.handover_hook(103))
    assert early.returncode == 1 and f"there is no {place}" in early.stdout and "up --refresh" in early.stdout
    for script in (scripts.handover([LINE]), scripts.handover_hook(103)):
        assert host.run("apply", script).returncode == 0
    assert host.read("/etc/pve/qemu-server/103.conf").endswith("hookscript: local:snippets/homelab-handover.sh\n")
    assert handed_over(host)["lost_hooks"] == []
    host.command("qm", 'sed -i "/^hookscript:/d" "$ROOT/etc/pve/qemu-server/$2.conf"')
    for script in (scripts.handover_hook(103), scripts.handover([LINE])):
        assert host.run("revert", script).returncode == 0
    assert [*host.root.rglob("homelab-handover*")] == []


def test_a_vm_whose_entry_got_another_name_keeps_its_hookscript(host: Folder) -> None:
    """What has the new name is applied first, and what had the old one undone after that."""
    host.command(
        "qm",
        'cd "$ROOT/etc/pve/qemu-server" && sed -i "/^hookscript:/d" "$2.conf" && { [[ $3 == --delete ]] || echo "hookscript: $4" >>"$2.conf"; }',
    )
    host.write("/etc/pve/storage.cfg", STORAGES.format("snippets"))
    before = host.read("/etc/pve/qemu-server/103.conf")
    old, new = (scripts.handover_hook(103, holder=name) for name in ("sandbox-hook adopted", "gaming-hook adopted"))
    for verb, script in (("apply", scripts.handover([LINE])), ("apply", old), ("apply", new), ("revert", old)):
        assert host.run(verb, script).returncode == 0
    assert "hookscript: local:snippets/" in host.read("/etc/pve/qemu-server/103.conf")
    assert host.run("revert", new).returncode == 0
    assert host.read("/etc/pve/qemu-server/103.conf") == before


def test_what_is_away_is_no_more_after_a_boot(host: Folder) -> None:
    host.write(STATE, "state=VM\nvm=103\nboot=boot\nsince=1\n")
    away = 'cards_away; echo "$AWAY"'
    assert host.bash(away, parts=("handover/rest",)).stdout.startswith("gpus.big is with VM 103 since 1970-01-01")
    host.write("/proc/sys/kernel/random/boot_id", "next\n")
    assert host.bash(away, parts=("handover/rest",)).stdout.strip() == ""


# -- what comes between ----------------------------------------------------------------------------------------------
def refused(host: Folder, *words: str) -> str:
    done = host.bash(program(*words), parts=())
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_a_container_that_still_goes_off_is_started_after_that(host: Folder) -> None:
    host.write(STATE, "state=DRAINING\nvm=103\nboot=boot\nsince=1\ncontainers=950\npersistence=Enabled\n")
    host.write("/active", "homelab-handover-big-stop-950.service\n")
    run(host, "reconcile")
    assert state(host) == "DRAINING", "it runs, and goes off: it would be taken for one that needs nothing"
    host.write("/ct950", "stopped\n")
    host.write("/active", "")
    run(host, "reconcile")
    assert is_with_the_host(host)


def test_a_container_is_shut_down_in_a_unit_and_in_its_own_time(host: Folder) -> None:
    host.write("/etc/pve/lxc/950.conf", "hostname: media\ndev0: /dev/nvidia0\nstartup: order=3,down=08\n")
    run(host, "hook", "103", "pre-start")
    assert "--unit=homelab-handover-big-stop-950 pct shutdown 950 --timeout 8 " in host.read("/asked")


def test_a_backup_in_stop_mode_of_a_vm_that_runs_keeps_the_card(host: Folder) -> None:
    conf = host.read("/etc/pve/qemu-server/103.conf")
    run(host, "hook", "103", "pre-start")
    host.write("/etc/pve/qemu-server/103.conf", f"lock: backup\n{conf}")
    run(host, "hook", "103", "post-stop")
    run(host, "reconcile")
    assert taken(host)
    run(host, "hook", "103", "pre-start")
    assert taken(host)
    host.write("/etc/pve/qemu-server/103.conf", conf)
    run(host, "reconcile")
    assert is_with_the_host(host)
    host.write("/etc/pve/qemu-server/103.conf", f"lock: backup\n{conf}")
    assert "a backup of VM 103" in refused(host, "hook", "103", "pre-start"), "of one that was off"


@pytest.mark.parametrize(
    ("modules", "hangs", "step"), [("nvidia", "", "loading nvidia"), ("", "step_nodes", "making its nodes")]
)
def test_a_driver_that_hangs_on_the_way_back_holds_nobody(lent: Folder, modules: str, hangs: str, step: str) -> None:
    lent.write(STATE, lent.read(STATE).replace("modules=", f"modules={modules}"))
    lent.command(
        "modprobe", 'mkdir -p "$ROOT/proc/66"; echo modprobe >"$ROOT/proc/66/comm"; exit 124' if modules else ""
    )
    lent.write("/hangs", hangs)
    run(lent, "reconcile")
    assert state(lent) == "STUCK" and f"{step} has not come to an end" in lent.read(STATE)
    run(lent, "reconcile")
    assert state(lent) == "STUCK" and lent.read("/ct950") == "stopped\n"
    # What it waited for has happened after all.
    for name in ("active", "hangs"):
        (lent.root / name).unlink(missing_ok=True)
    shutil.rmtree(lent.root / "proc/66", ignore_errors=True)
    lent.command("modprobe", "")
    run(lent, "reconcile")
    assert is_with_the_host(lent) and state(lent) == "HELD"


def test_a_vm_that_runs_is_not_asked_whether_a_step_is_at_work(lent: Folder) -> None:
    lent.write(STATE, re.sub(r"since=\d+", "since=1", lent.read(STATE)))
    lent.command("qm", 'echo "status: running"')
    lent.write("/active", "homelab-handover-big-step_bind.service\n")
    run(lent, "reconcile")
    assert taken(lent)


@pytest.mark.parametrize("step", ["step_claim", "step_unbind", "step_release", "step_attach", "step_nodes"])
@pytest.mark.parametrize("said", ["it has ended", "nothing"])
def test_a_step_of_which_systemd_does_not_say_in_time_what_came_of_it_is_no_reason_for_a_reboot(
    host: Folder, step: str, said: str
) -> None:
    """124 of what starts a unit says that it didn't answer; only a unit that is active waits in the kernel."""
    late = f'[[ " $* " != *" {step} "* || -e $ROOT/answers ]] || {{ touch "$ROOT/asleep"; exit 124; }}\n'
    host.command("systemd-run", late + COMMANDS["systemd-run"])
    if said == "nothing":
        host.command("systemctl", "[[ $* != *is-active* || ! -e $ROOT/asleep ]] || exit 1\n" + COMMANDS["systemctl"])
    host.bash(program("hook", "103", "pre-start"), parts=())
    run(host, "reconcile")
    assert (host.root / "asleep").exists() and state(host) != "STUCK"
    (host.root / "asleep").unlink()
    host.write("/answers", "")
    run(host, "reconcile")
    assert is_with_the_host(host) and state(host) in ("", "HELD")


def test_who_comes_between_the_look_and_the_unbinding_is_seen(host: Folder) -> None:
    host.write("/late/maps", "7f00-7f01 rw-s 00000000 00:05 103 /dev/nvidia0\n")
    (host.root / "late/task").mkdir()
    (host.root / "late/task/43").symlink_to("..")
    assert "in use by ? (PID 43)" in refused(host, "hook", "103", "pre-start")
    assert is_with_the_host(host) and state(host) == "HELD"


# -- a start by hand while an `up` is at work ---------------------------------------------------------------------------
def handed_over(host: Folder) -> Any:
    """What a reading of the host has of it."""
    return json.loads(host.run("read", read_host()).stdout)["handover"]


def start(host: Folder) -> tuple[int, str]:
    done = host.bash(program("hook", "103", "pre-start"), parts=())
    return done.returncode, done.stdout


def test_a_start_by_hand_waits_for_the_end_of_an_up(host: Folder) -> None:
    with holding(host, "anna on desk") as up:
        assert answer(up) == HELD
        status, said = start(host)
        assert status == 1 and "is at work: anna on desk" in said and "when that has ended" in said
        assert is_with_the_host(host) and state(host) == ""
        assert "doesn't get it" in host.read("/var/lib/homelab/handover/log")
        conf = host.read("/etc/pve/qemu-server/103.conf")
        host.write("/etc/pve/qemu-server/103.conf", "name: gaming\n")
        assert start(host) == (0, ""), "a start without the card is nobody's business"
        host.write("/etc/pve/qemu-server/103.conf", conf)
        # One that the run itself is about to start.
        let_start(host, "anna on desk")
        assert start(host)[0] == 0 and taken(host)
    run(host, "reconcile")
    assert is_with_the_host(host)
    with holding(host, "ben") as up:
        assert answer(up) == HELD
        assert start(host)[0] == 1, "what one run has let start, the next one hasn't"
    assert start(host)[0] == 0 and taken(host)


def let_start(host: Folder, who: str) -> None:
    assert host.run("pass", scripts.compose("run_guard.sh", WHO=who, VMID="103")).returncode == 0


def test_a_run_that_was_cut_off_has_let_start_what_it_had_when_it_comes_back(host: Folder) -> None:
    with holding(host, "anna") as up:
        assert answer(up) == HELD
        let_start(host, "anna")
    with holding(host, "anna") as up:
        assert answer(up) == HELD
        assert start(host)[0] == 0 and taken(host)
    with holding(host, "anna") as up:
        assert answer(up) == HELD, "its own VM has the card: that is what it wanted"
    with holding(host, "ben") as up:
        said, _ = up.communicate()
        assert up.returncode == 1 and "gpus.big is with VM 103 since" in said
    run(host, "reconcile")
    with holding(host, "ben") as up:
        assert answer(up) == HELD
        let_start(host, "anna")
        assert start(host)[0] == 1, "whoever says so later than its own end"
    with holding(host, "anna") as up:
        assert answer(up) == HELD
        assert "ben" not in host.read("/run/homelab/passes")


def test_a_run_that_was_cut_off_comes_back_while_its_own_vm_takes_the_card(host: Folder) -> None:
    gated(host, "shutdown")
    with holding(host, "anna") as up:
        assert answer(up) == HELD
        let_start(host, "anna")
        begun = began(host, "hook", "103", "pre-start")
    with begun:
        for who, status in (("ben", 1), ("anna", 0)):
            with holding(host, who, handing="0.2") as up:
                assert (answer(up) != HELD) is bool(status), who
        (host.root / "gate").write_text("go\n")
        assert begun.wait() == 0
    assert taken(host)


def test_the_timers_service_waits_for_the_end_of_an_up(lent: Folder) -> None:
    away = lent.read(STATE)
    lent.write(STATE, away.replace("boot=boot", "boot=before"))  # so that the run isn't refused
    with holding(lent, "anna") as up:
        assert answer(up) == HELD
        lent.write(STATE, away)
        run(lent, "reconcile")
        assert taken(lent), "the card"
        lent.write(STATE, away.replace("state=VM", "state=HELD").replace("since=", f"since={int(time.time())}\nx="))
        run(lent, "reconcile")
        assert lent.read("/ct950") == "stopped\n", "containers that are to be started again"
        lent.write(STATE, away)
        let_start(lent, "anna")
        run(lent, "reconcile")
        assert is_with_the_host(lent) and state(lent) == "", "a start of its own that has failed is undone"


def test_an_up_that_begins_waits_for_a_card_that_comes_back(lent: Folder) -> None:
    gated(lent, "start")
    with began(lent, "reconcile") as service:
        with holding(lent, "anna") as up:
            wait_until((lent.root / "run/homelab/up").exists)
            (lent.root / "gate").write_text("go\n")
            assert answer(up) == HELD
        assert service.wait() == 0
    assert is_with_the_host(lent)


def gated(host: Folder, verb: str) -> None:
    """`pct VERB` waits until something is written to the file `gate`; that it has begun is to be seen by a file."""
    gate = f'case $1 in {verb}) mkfifo "$ROOT/gate"; : >"$ROOT/waiting"; read -r _ <"$ROOT/gate" ;; esac\n'
    host.command("pct", gate + COMMANDS["pct"])


def began(host: Folder, *words: str) -> subprocess.Popen[bytes]:
    """The program, which has come as far as the gate."""
    begun = subprocess.Popen(["bash", "-c", program(*words)], env=host.environment, stdout=subprocess.PIPE)
    wait_until((host.root / "waiting").exists)
    return begun


def test_an_up_that_begins_waits_for_a_handover_and_is_then_refused(host: Folder) -> None:
    """A run that looked before the card is noted as away would find out between two of its steps."""
    gated(host, "shutdown")
    with began(host, "hook", "103", "pre-start") as started:
        with holding(host, "anna") as up:
            wait_until((host.root / "run/homelab/up").exists)
            (host.root / "gate").write_text("go\n")
            said, _ = up.communicate()
        assert up.returncode == 1 and "gpus.big is with VM 103 since" in said
        assert started.wait() == 0
    assert taken(host)


def test_a_vm_that_has_its_card_starts_again_during_an_up(lent: Folder) -> None:
    lent.write(STATE, lent.read(STATE).replace("boot=boot", "boot=before"))  # so that the run isn't refused
    with holding(lent, "anna") as up:
        assert answer(up) == HELD
        lent.write(STATE, lent.read(STATE).replace("boot=before", "boot=boot"))
        assert start(lent)[0] == 0 and taken(lent), "`qm reboot` keeps it"


def test_a_storage_that_does_not_answer_hides_nobody(host: Folder) -> None:
    look(host, 41)
    host.command(
        "stat",
        """\
[[ $1 == --cached=always ]] || exit 9
for why in 'Stale file handle' 'Transport endpoint is not connected' 'Input/output error'; do
  echo "stat: cannot statx '$ROOT/proc/41/task/41/fd/9': $why" >&2
done
PATH=/usr/bin:/bin stat "$@"
exit 1""",
    )
    assert host.sourced("handover_host.sh", LOOK, CARDS=LINE).stdout.strip() == "ollama (PID 41 of container 950)"


RULE = "lxc.cgroup2.devices.allow: c {}:* rwm\n"
MOUNT = "lxc.mount.entry: /dev/{0} dev/{0} none bind,optional,create=file\n"


@pytest.mark.parametrize(
    ("lines", "moved", "starts"),
    [
        ("dev0: /dev/nvidia0\n", "uvm", True),
        ("dev0: /dev/nvidia0\n", "minor", False),
        (MOUNT.format("nvidia0") + RULE.format(195), "uvm", True),
        (MOUNT.format("nvidia0") + RULE.format(195), "minor", False),
        (MOUNT.format("nvidia0") + RULE.format(508), "uvm", False),
        (MOUNT.format("nvidia0") + RULE.format(508) + RULE.format(507), "uvm", True),
        (MOUNT.format("nvidia0") + "lxc.cgroup2.devices.allow: a\n", "uvm", True),
        (MOUNT.format("dri/renderD128") + MOUNT.format("nvidia0"), "dri", False),
        (MOUNT.format("nvidia0"), "dri", True),
    ],
)
def test_lines_of_somebody_else_keep_a_container_off_where_they_mean_what_moved(
    host: Folder, lines: str, moved: str, starts: bool
) -> None:
    (host.root / f"sys/bus/pci/devices/{GPU}/drm/renderD128").mkdir(parents=True)
    host.write("/etc/pve/lxc/950.conf", f"hostname: media\n{lines}")
    run(host, "hook", "103", "pre-start")
    assert host.read("/ct950") == "stopped\n"
    if moved == "uvm":
        host.write("/proc/devices", host.read("/proc/devices").replace("508 nvidia-uvm", "507 nvidia-uvm"))
    elif moved == "minor":
        host.write(f"/proc/driver/nvidia/gpus/{GPU}/information", "Device Minor: \t 1\n")
    else:
        (host.root / f"sys/bus/pci/devices/{GPU}/drm/renderD128").rename(
            host.root / f"sys/bus/pci/devices/{GPU}/drm/renderD129"
        )
    run(host, "reconcile")
    assert (state(host), host.read("/ct950")) == (("", "running\n") if starts else ("HELD", "stopped\n"))
    if not starts:
        assert "container 950 has lines with the earlier ones" in host.read(STATE)


def test_a_container_that_could_not_be_started_is_not_forgotten(lent: Folder) -> None:
    lent.command("pct", COMMANDS["pct"].replace("start) [[ ! -e $ROOT/ails ]]", "start) [[ ! -e $ROOT/away ]]"))
    lent.write("/away", "")
    run(lent, "reconcile")
    assert state(lent) == "HELD" and "containers=950\n" in lent.read(STATE)
    run(lent, "hook", "103", "pre-start")
    assert taken(lent) and "containers=950" in lent.read(STATE)
    run(lent, "reconcile")
    assert state(lent) == "HELD"
    (lent.root / "away").unlink()
    run(lent, "reconcile")
    assert is_with_the_host(lent) and state(lent) == ""


def test_a_card_that_answers_after_a_while_is_not_dead(lent: Folder) -> None:
    lent.write("/ails", "")
    run(lent, "reconcile")
    assert (state(lent), lent.read("/ct950")) == ("HELD", "stopped\n") and "nvidia-smi" in lent.read(STATE)
    (lent.root / "ails").unlink()
    run(lent, "reconcile")
    assert is_with_the_host(lent) and state(lent) == ""


def test_who_can_not_be_asked_has_not_ended(lent: Folder) -> None:
    lent.command("qm", "exit 1")
    place = lent.root / "etc/pve/qemu-server"
    place.rename(lent.root / "unmounted")
    run(lent, "reconcile")
    assert taken(lent), "/etc/pve isn't mounted"
    place.mkdir()
    run(lent, "reconcile")
    assert is_with_the_host(lent), "the VM is gone"


def test_a_step_that_can_not_be_asked_about_is_at_work(host: Folder) -> None:
    host.write(STATE, f"state=DETACHED\nvm=103\nboot=boot\nsince={int(time.time())}\ncontainers=950\n")
    host.command("systemctl", 'case "$*" in is-system-running) echo running ;; *is-active*) exit 1 ;; esac')
    run(host, "reconcile")
    assert state(host) == "DETACHED"


def test_a_vm_that_runs_for_days_is_not_stuck_because_systemd_does_not_answer(lent: Folder) -> None:
    lent.write(STATE, re.sub(r"since=\d+", "since=1", lent.read(STATE)))
    lent.command("systemctl", 'case "$*" in is-system-running) echo running ;; *is-active*) exit 1 ;; esac')
    run(lent, "reconcile")
    assert taken(lent)
    lent.command("systemctl", COMMANDS["systemctl"])
    run(lent, "reconcile")
    assert is_with_the_host(lent)


@pytest.mark.parametrize("ends", [True, False])
def test_a_step_that_goes_on_after_whoever_began_it_has_a_minute(lent: Folder, ends: bool) -> None:
    lent.write(STATE, re.sub(r"since=\d+", "since=1", lent.read(STATE)).replace("state=VM", "state=RETURNING"))
    lent.write("/active", "homelab-handover-big-step_release.service\n")
    if not ends:
        run(lent, "reconcile")
        assert state(lent) == "STUCK" and "a step on its way has not come to an end" in lent.read(STATE)
        return
    os.mkfifo(lent.root / "gate")
    step = subprocess.Popen(["bash", "-c", 'read -r _ <"$ROOT/gate"'], env=lent.environment)
    lent.command(
        "systemctl", f'case "$1" in show) echo {step.pid}; : >"$ROOT/waiting"; exit ;; esac\n{COMMANDS["systemctl"]}'
    )
    with began(lent, "reconcile") as service:
        lent.write("/active", "")
        lent.write("/gate", "go\n")
        step.wait()
        assert service.wait() == 0
    assert is_with_the_host(lent) and state(lent) == ""


def test_a_card_is_not_dead_because_run_is_full(lent: Folder) -> None:
    # What a command says can't be written anywhere.
    full = 'RUN=/dev/full; read_card big; load_state big; set +e; trap - ERR EXIT; bounded 5 echo; echo "$? $(is_alive; echo $?)"'
    assert lent.sourced("handover_host.sh", full, CARDS=LINE).stdout == "1 0\n"
    lent.sourced("handover_host.sh", full.replace("; bounded 5 echo;", "; give_back;"), CARDS=LINE)
    assert state(lent) == "RETURNING"
    run(lent, "reconcile")
    assert is_with_the_host(lent) and state(lent) == ""


def test_a_card_that_stayed_drained_lets_clients_in_before_its_containers_start(lent: Folder) -> None:
    lent.write("/ails", "")
    run(lent, "reconcile")
    assert state(lent) == "HELD"
    lent.write("/drain", "1\n")
    (lent.root / "ails").unlink()
    run(lent, "reconcile")
    assert is_with_the_host(lent) and state(lent) == ""


def test_a_card_that_can_not_be_let_go_of_its_drain_is_not_called_whole(lent: Folder) -> None:
    lent.command("nvidia-smi", f'[[ "$*" != drain*" -m 0" ]] || exit 9\n{COMMANDS["nvidia-smi"]}')
    run(lent, "reconcile")
    assert (state(lent), lent.read("/drain"), lent.read("/ct950")) == ("HELD", "1\n", "stopped\n")
    lent.command("nvidia-smi", COMMANDS["nvidia-smi"])
    run(lent, "reconcile")
    assert is_with_the_host(lent) and state(lent) == ""


def test_a_driver_that_answers_late_gets_its_settings_back_without_a_container_too(host: Folder) -> None:
    host.write("/ct950", "stopped\n")
    run(host, "hook", "103", "pre-start")
    host.write("/ails", "")
    run(host, "reconcile")
    assert (state(host), host.read("/persistence")) == ("HELD", "Disabled\n")
    (host.root / "ails").unlink()
    run(host, "reconcile")
    assert (state(host), host.read("/persistence"), host.read("/drain")) == ("", "Enabled\n", "0\n")
    assert host.read("/ct950") == "stopped\n"


def test_what_a_command_says_is_told_as_text(host: Folder) -> None:
    host.command(
        "nvidia-smi",
        r'[[ $* != *drain* ]] || { printf "\e[31mno\0t here\e[0m\n"; exit 9; }' + "\n" + COMMANDS["nvidia-smi"],
    )
    run(host, "hook", "103", "pre-start")
    assert "it can't be drained, and goes without that: not here\n" in host.read("/var/lib/homelab/handover/log")


def test_of_two_cards_the_first_comes_back_where_the_second_is_not_to_be_had(host: Folder) -> None:
    two = f"small {OTHER}=10de:2684 103\n{LINE}"
    host.write("/etc/pve/qemu-server/103.conf", "name: gaming\nhostpci0: 0000:01:00\nhostpci1: 0000:02:00\n")
    host.write(f"/sys/bus/pci/devices/{OTHER}/boot_vga", "1\n")
    for lines in (two, "\n".join(reversed(two.splitlines()))):
        text = "set -- hook 103 pre-start\n" + scripts.compose("handover_host.sh", CARDS=lines)
        done = host.bash(text, parts=())
        assert done.returncode == 1 and "this host's screen" in done.stdout
        assert is_with_the_host(host), done.stdout
    assert state(host) == "HELD" and "VM 103 didn't get all of its cards" in host.read(STATE)


def test_no_vm_names_the_hookscript_when_it_is_gone(host: Folder) -> None:
    for vmid, name in ((104, "homelab-handover.sh"), (105, "mine.sh")):
        host.write(f"/etc/pve/qemu-server/{vmid}.conf", f"hookscript: local:snippets/{name}\n")
    host.command("qm", '[[ ! -e $ROOT/ails ]] || exit 9; sed -i "/^hookscript:/d" "$ROOT/etc/pve/qemu-server/$2.conf"')
    host.write("/ails", "")
    script = scripts.handover([LINE])
    done = host.run("revert", script)
    assert done.returncode == 1 and "VM 104 without our hookscript" in done.stdout
    (host.root / "ails").unlink()
    assert host.run("revert", script).returncode == 0
    assert host.read("/etc/pve/qemu-server/104.conf") == ""
    assert "mine.sh" in host.read("/etc/pve/qemu-server/105.conf")


# -- rehearsed -------------------------------------------------------------------------------------------------------
NOTED = "state={}\nvm=103\nboot={}\nsince=1\nwhy=unbinding it waits\ncontainers=950\nnumbers=0,508,,\n"


@pytest.mark.parametrize(
    ("state", "runs", "vmid", "stands", "refused"),
    [
        ("", False, 103, "", ""),
        ("", True, 103, "", "VM 103 runs already, without it"),
        ("VM", True, 103, "VM 103 runs, and has it already", ""),
        ("VM", False, 103, "VM 103 had it last, and nobody has given it back yet", ""),
        ("VM", True, 104, "VM 103 has it since", "shut VM 103 down first"),
        ("VM", False, 104, "VM 103 had it last, and is off", ""),
        ("RETURNING", False, 103, "on its way back from VM 103", ""),
        ("DETACHED", False, 103, "on its way to VM 103 (DETACHED)", "a handover is at work"),
        ("STUCK", False, 103, "it is STUCK", "unbinding it waits"),
        ("VM before", False, 103, "", ""),
    ],
)
def test_a_rehearsal_says_where_the_card_is(
    host: Folder, state: str, runs: bool, vmid: int, stands: str, refused: str
) -> None:
    host.command("qm", f"echo 'status: {'running' if runs else 'stopped'}'")
    host.write("/etc/pve/qemu-server/104.conf", host.read("/etc/pve/qemu-server/103.conf"))
    name, _, boot = state.partition(" ")
    if name:
        host.write(STATE, NOTED.format(name, boot or "boot"))
    if stands:
        for address in (GPU, AUDIO):
            link = host.root / "sys/bus/pci/devices" / address / "driver"
            link.unlink()
            link.symlink_to("../../../../bus/pci/drivers/vfio-pci")
    before = [*handover_files(host)]
    done = host.run("rehearse", scripts.rehearse_card([f"{LINE},104"], "big", vmid))
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert (stands in said["stands"]) and bool(said["stands"]) is bool(stands), said
    assert (refused in said["refused"]) and bool(said["refused"]) is bool(refused), said
    assert said["containers"] == ([] if stands else ["950"]), "nothing is looked at where it isn't"
    assert [*handover_files(host)] == before


def handover_files(host: Folder) -> Iterator[str]:
    """What must be as before: everything but what the lock and the look have of their own."""
    for path in sorted(host.root.rglob("*")):
        if path.is_file() and "run/homelab" not in path.as_posix():
            yield f"{path} {path.read_bytes()!r}"


def test_a_run_that_comes_back_has_its_passes_while_it_waits_for_a_handover(host: Folder) -> None:
    asked = "run_at_work 103 && echo at work || echo passed"
    host.write("/run/homelab/passes", "103 anna\n105 ben\n")
    host.write("/run/homelab/handing", "")
    with (host.root / "run/homelab/handing").open() as handing, holding(host, "anna") as up:
        (host.root / "run/homelab").chmod(0o700)
        fcntl.flock(handing, fcntl.LOCK_EX)
        path = host.root / "run/homelab/up"
        wait_until(lambda: path.exists() and path.read_text() == "anna\n")
        assert host.sourced("handover_host.sh", asked, CARDS=LINE).stdout == "passed\n"
        with (host.root / "run/homelab/passes").open("a") as passes:
            passes.write("104 anna\n")
        host.write("/var/lib/homelab/handover/big.state", "state=VM\nvm=104\nboot=boot\nsince=1\n")
        fcntl.flock(handing, fcntl.LOCK_UN)
        assert answer(up) == HELD, "the card of a VM that it let through meanwhile is where it is to be"
    assert host.read("/run/homelab/passes") == "103 anna\n104 anna\n"


def test_the_card_that_comes_back_first_has_all_modules_that_went_with_the_second(lent: Folder) -> None:
    gone = "nvidia_uvm nvidia_drm nvidia_modeset nvidia"
    lent.write("/var/lib/homelab/handover/small.state", f"state=VM\nvm=104\nboot=boot\nsince=1\nmodules={gone}\n")
    lent.write("/var/lib/homelab/handover/old.state", "state=VM\nvm=105\nboot=before\nmodules=nvidia_peermem\n")
    lent.command("modprobe", 'echo "$1" >>"$ROOT/loaded"')
    run(lent, "reconcile")
    assert lent.read("/loaded").split()[-4:] == gone.split()[::-1] and is_with_the_host(lent)


@pytest.mark.parametrize(
    ("was", "now", "moved"),
    [
        ("0,508,,card1 renderD128 ", "0,508,,card1 renderD128 ", False),
        ("0,508,,card1 renderD128 ", "0,,,", False),
        ("0,508,,card1 renderD128 ", "0,508,,card1 ", False),
        ("0,508,,card1 renderD128 ", "0,508,,card1 renderD129 ", True),
        ("0,508,,card1 renderD128 ", "0,508,,card2 renderD128 ", True),
        ("0,508,,", "0,508,,card1 renderD128 ", False),
        ("0,508,236,", "0,508,237,", True),
        ("0,508,,", "1,508,,", True),
    ],
)
def test_a_number_that_is_not_there_yet_has_not_moved(host: Folder, was: str, now: str, moved: bool) -> None:
    text = f"find_numbers() {{ NUMBERS='{now}'; }}; numbers_moved '{was}' && echo moved || echo same"
    assert host.sourced("handover_host.sh", text, CARDS=LINE).stdout == ("moved\n" if moved else "same\n")


@pytest.mark.parametrize("way", ["revert", "another card"])
def test_containers_that_are_still_off_are_named_where_what_is_noted_goes(host: Folder, way: str) -> None:
    host.write("/etc/pve/storage.cfg", STORAGES.format("snippets"))
    run(host, "hook", "103", "pre-start")
    host.write("/ails", "")
    run(host, "reconcile")
    assert state(host) == "HELD" and host.read("/ct950") == "stopped\n"
    lines = [LINE.replace("big", "other")] if way == "another card" else [LINE]
    done = host.run("revert" if way == "revert" else "apply", scripts.handover(lines))
    assert done.returncode == 0 and state(host) == "", done.stdout + done.stderr
    assert "container 950 was shut down for VM 103" in done.stdout + done.stderr
    assert "`pct start 950`" in done.stdout + done.stderr
    (host.root / "ails").unlink()
    subprocess.run(["bash", "-c", "pct start 950"], env=host.environment, check=True)
    assert host.read("/ct950") == "running\n"


def test_what_is_noted_of_a_card_that_stays_shared_stays(host: Folder) -> None:
    host.write("/etc/pve/storage.cfg", STORAGES.format("snippets"))
    host.write(STATE, "state=HELD\nvm=103\nboot=boot\nsince=1\ncontainers=950\n")
    for lines in ([LINE], [LINE.replace("big", "other"), LINE]):
        assert host.run("apply", scripts.handover(lines)).returncode == 0 and state(host) == "HELD"


def test_a_vm_that_was_moved_to_another_node_is_named_with_its_hookscript(host: Folder) -> None:
    conf = "hookscript: local:snippets/homelab-handover.sh\n"
    host.write("/etc/pve/nodes/other/qemu-server/103.conf", conf)
    (host.root / "etc/pve/qemu-server/103.conf").unlink()
    host.write("/var/lib/homelab/handover-hooks/103", "one\n")
    seen = handed_over(host)
    assert (seen["lost_hooks"], seen["moved_hooks"]) == ([], ["103 on other"])
    for text in (scripts.handover([LINE]), scripts.handover_hook(103, holder="one")):
        done = host.run("revert", text)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "VM 103 is on node other now" in said, said
        assert "On other: `qm set 103 --delete hookscript`" in said
    assert host.read("/etc/pve/nodes/other/qemu-server/103.conf") == conf, "that node may have one of its own"
    done = host.run("revert", scripts.handover([LINE]))
    assert "node other" not in done.stdout + done.stderr, "nothing is noted of it any more"


def test_units_that_systemd_has_not_read_are_read_by_the_next_run(host: Folder) -> None:
    host.write("/etc/pve/storage.cfg", STORAGES.format("snippets"))
    for target, kind in (("multi-user", "service"), ("timers", "timer")):
        place = host.root / f"etc/systemd/system/{target}.target.wants"
        place.mkdir(parents=True)
        (place / f"homelab-handover.{kind}").symlink_to(f"../homelab-handover.{kind}")
    host.command("systemctl", 'echo "$*" >>"$ROOT/systemd"; [[ $* != *NeedDaemonReload* ]] || cat "$ROOT/needs"')
    host.write("/needs", "no\n")
    assert host.run("apply", scripts.handover([LINE])).returncode == 0
    for needs, reads in (("no\n", False), ("yes\n", True)):
        host.write("/needs", needs)
        host.write("/systemd", "")
        assert host.run("apply", scripts.handover([LINE])).returncode == 0
        assert ("daemon-reload" in host.read("/systemd")) is reads


@pytest.mark.parametrize(("about", "refused"), [("", True), ("\tstate started\n", True), ("\tstate ignored\n", False)])
def test_a_container_that_ha_ignores_is_nobodys_but_ours(host: Folder, about: str, refused: bool) -> None:
    host.write("/etc/pve/ha/resources.cfg", f"vm: 950\n\tstate ignored\n\nct: 950\n{about}\nct: 951\n\tstate ignored\n")
    status, said = start(host)
    assert (status == 1 and "container 950, which uses the card, is under HA" in said) is refused
    assert taken(host) is not refused


def test_a_start_waits_until_the_containers_run_again_and_then_gets_the_card(host: Folder) -> None:
    assert start(host)[0] == 0 and taken(host)
    gated(host, "start")
    text = program("hook", "103", "pre-start").replace(
        'get_host "$START_SECONDS" && return 0', "get_host 0 && return 0", 1
    )
    with began(host, "reconcile") as going_back:
        begun = subprocess.Popen(["bash", "-c", text], env=host.environment, stdout=subprocess.PIPE, text=True)
        with begun:
            assert begun.stdout is not None
            assert "VM 103 waits for a card that is on its way" in begun.stdout.readline()
            host.command("pct", COMMANDS["pct"])
            (host.root / "gate").write_text("\n")
            begun.communicate()
    assert (going_back.returncode, begun.returncode) == (0, 0) and taken(host)


@pytest.mark.parametrize("now", ["", "vfio-pci"])
def test_a_card_that_no_driver_took_is_given_to_its_driver_again(host: Folder, now: str) -> None:
    assert start(host)[0] == 0 and taken(host)
    host.command("systemd-run", COMMANDS["systemd-run"].replace("step_bind | step_attach)", "step_bind)"))
    run(host, "reconcile")
    assert state(host) == "HELD" and drivers(host)[0] == "" and host.read("/ct950") == "stopped\n"
    host.command("systemd-run", COMMANDS["systemd-run"])
    if now:  # by a person
        (host.root / f"sys/bus/pci/devices/{GPU}/driver").symlink_to(f"../../../../bus/pci/drivers/{now}")
    run(host, "reconcile")
    if now:
        assert state(host) == "HELD" and drivers(host)[0] == now
    else:
        assert is_with_the_host(host) and state(host) == ""


def test_a_card_that_is_given_to_its_driver_again_gets_its_nodes_before_its_containers_start(host: Folder) -> None:
    """Modules that come back may have another major: the nodes of before would be nobody's."""
    assert start(host)[0] == 0 and taken(host)
    host.command("systemd-run", COMMANDS["systemd-run"].replace("step_bind | step_attach)", "step_bind)"))
    run(host, "reconcile")
    assert state(host) == "HELD" and host.read("/ct950") == "stopped\n"
    noted = '[[ " $* " != *" step_nodes "* ]] || printf "%s\\n" "$(<"$ROOT/ct950")" >>"$ROOT/nodes"\n'
    host.command("systemd-run", noted + COMMANDS["systemd-run"])
    # First it waits in the kernel: nobody is started without its nodes.
    host.write("/hangs", "step_nodes")
    run(host, "reconcile")
    assert state(host) == "STUCK" and "making its nodes" in host.read(STATE) and host.read("/ct950") == "stopped\n"
    for name in ("active", "hangs", "nodes"):
        (host.root / name).unlink()
    run(host, "reconcile")
    assert host.read("/nodes") == "stopped\n" and is_with_the_host(host)


def test_a_start_is_told_what_has_the_host_for_long(host: Folder) -> None:
    for on_its_way in (False, True):
        host.write("/run/homelab/handing", "")
        with (host.root / "run/homelab/handing").open() as handing:
            if on_its_way:
                fcntl.flock(handing, fcntl.LOCK_EX)
            said = host.sourced("handover_host.sh", "tell_who_changes 103", CARDS=LINE).stdout
        assert ("its containers have been starting again" in said) is on_its_way
        assert "start VM 103 again when that has ended" in said


@pytest.mark.parametrize(("noted", "waits"), [("", True), ("VM", False)])
def test_a_rehearsal_waits_for_a_run_only_where_a_start_would(host: Folder, noted: str, waits: bool) -> None:
    with holding(host, "anna") as up:
        assert answer(up) == HELD
        if noted:
            host.write(STATE, NOTED.format(noted, "boot"))
        done = host.run("rehearse", scripts.rehearse_card([LINE], "big", 103))
        assert ("an up or a destroy of this host is at work" in json.loads(done.stdout)["refused"]) is waits


def test_a_backup_of_a_vm_whose_card_is_on_vfio_by_other_configuration_is_none_of_ours(host: Folder) -> None:
    for one in (GPU, AUDIO):
        link = host.root / f"sys/bus/pci/devices/{one}/driver"
        link.unlink()
        link.symlink_to("../../../../bus/pci/drivers/vfio-pci")
    host.write("/etc/pve/qemu-server/103.conf", "lock: backup\nhostpci0: mapping=big,driver=keep,pcie=1\n")
    run(host, "hook", "103", "pre-start")
    assert state(host) == ""


@pytest.mark.parametrize(("has_it", "said"), [(False, "a backup of VM 103, which was off"), (True, "for too long")])
def test_a_backup_of_a_vm_that_is_off_waits_for_nobody(host: Folder, has_it: bool, said: str) -> None:
    """While somebody has the host's lock. In stop mode a VM that has the card keeps it, and waits."""
    if has_it:
        run(host, "hook", "103", "pre-start")
    conf = host.read("/etc/pve/qemu-server/103.conf")
    host.write("/etc/pve/qemu-server/103.conf", f"lock: backup\n{conf}")
    before = [*handover_files(host)]
    text = program("hook", "103", "pre-start").replace("START_SECONDS=180", "START_SECONDS=0")
    (host.root / "run/homelab").mkdir(mode=0o700, parents=True, exist_ok=True)
    with (host.root / "run/homelab/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = host.bash(text, parts=())
    assert done.returncode == 1 and said in done.stdout, done.stdout + done.stderr
    assert [*handover_files(host)] == before
