"""What hands a card from containers to a VM and back, on a folder: killed at its commands, and who has a card open.

By default a sample of the moments is tried, another one each day (tests/sampling.py); HOMELAB_EVERY_CUT=1 tries every one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab.remote import scripts
from tests import sampling
from tests.scripts import cut_kit
from tests.scripts.conftest import Folder

GPU, AUDIO, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"
LINE = f"big {GPU}=10de:2b85,{AUDIO}=10de:22e8 103"
STATE = "/var/lib/homelab/handover/big.state"
SAMPLE = 8
# What happens to a function when a step is done, and what a person's and Proxmox VE's programs say.
COMMANDS = {
    "systemd-run": f"""\
while [[ $1 == -* ]]; do shift; done
bus=$ROOT/sys/bus/pci
[[ $2 == step_* ]] || exit 0
for f in {GPU} {AUDIO}; do
  link=$bus/devices/$f/driver now= wants=nvidia
  [[ ! -L $link ]] || now=$(basename "$(readlink "$link")")
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
[[ -L $ROOT/sys/bus/pci/devices/{GPU}/driver && $(readlink "$ROOT/sys/bus/pci/devices/{GPU}/driver") == */nvidia ]] || exit 6
case "$*" in
  *persistence_mode*) cat "$ROOT/persistence" ;;
  *-pm*) if [[ ${{*: -1}} == 1 ]]; then echo Enabled; else echo Disabled; fi >"$ROOT/persistence" ;;
  drain*) echo "${{*: -1}}" >"$ROOT/drain" ;;
  *) echo there ;;
esac
""",
    "pct": """\
case $1 in
  status) echo "status: $(cat "$ROOT/ct$2")" ;;
  shutdown) echo stopped >"$ROOT/ct$2" ;;
  start) echo running >"$ROOT/ct$2" ;;
esac
""",
    "qm": 'echo "status: stopped"',
    "systemctl": 'case "$*" in is-system-running) echo running ;; *is-active*) exit 3 ;; esac',
    "modprobe": "",
    "mknod": 'for path in "$@"; do [[ $path != "$ROOT"/dev/* ]] || : >"$path"; done',
    "sync": "",
}


@pytest.fixture
def host(folder: Folder) -> Folder:
    """A card of two functions, of two with the driver, and container 950, which runs with it."""
    for name, text in COMMANDS.items():
        folder.command(name, text)
    bus = "/sys/bus/pci/devices"
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


def stops(host: Folder, output: Path, *words: str) -> int:
    """At how many commands a run can be killed; it goes to its end."""
    started, count = cut_kit.start(host, "-", program(*words), output), 0
    for event in started.events:
        count += event.startswith("point ")
        started.go()
    assert started.process.wait() == 0, output.read_text()
    return count


def killed(host: Folder, output: Path, number: int, *words: str) -> None:
    started = cut_kit.start(host, "-", program(*words), output)
    count = 0
    for event in started.events:
        count += event.startswith("point ")
        if count >= number and event.startswith("point "):
            started.kill(event)
            return
        started.go()
    started.process.wait()


def test_a_hook_that_is_killed_anywhere_leaves_what_the_service_brings_back(host: Folder, tmp_path: Path) -> None:
    count = stops(host, tmp_path / "output", "hook", "103", "pre-start")
    assert count > 300 and taken(host)
    run(host, "reconcile")
    assert is_with_the_host(host) and state(host) == "", "no VM runs, and none starts"
    for number in sampling.sample(range(1, count + 1), SAMPLE, "hook"):
        killed(host, tmp_path / "killed", number, "hook", "103", "pre-start")
        run(host, "reconcile")
        assert is_with_the_host(host) and state(host) in ("", "HELD"), f"HOMELAB_SEED={sampling.SEED} {number}"
        (host.root / STATE.lstrip("/")).unlink(missing_ok=True)


def test_a_service_that_is_killed_anywhere_is_finished_by_the_next(host: Folder, tmp_path: Path) -> None:
    run(host, "hook", "103", "pre-start")
    count = stops(host, tmp_path / "output", "reconcile")
    assert count > 200 and is_with_the_host(host)
    for number in sampling.sample(range(1, count + 1), SAMPLE, "service"):
        run(host, "hook", "103", "pre-start")
        assert taken(host)
        killed(host, tmp_path / "killed", number, "reconcile")
        run(host, "reconcile")
        assert is_with_the_host(host) and state(host) == "", f"HOMELAB_SEED={sampling.SEED} {number}"


def test_a_hook_that_is_killed_and_the_same_start_again(host: Folder, tmp_path: Path) -> None:
    count = stops(host, tmp_path / "output", "hook", "103", "pre-start")
    run(host, "reconcile")
    for number in sampling.sample(range(1, count + 1), SAMPLE, "again"):
        killed(host, tmp_path / "killed", number, "hook", "103", "pre-start")
        run(host, "hook", "103", "pre-start")
        assert taken(host), f"HOMELAB_SEED={sampling.SEED} {number}"
        run(host, "reconcile")
        assert is_with_the_host(host)


@pytest.mark.parametrize("noted", ["DRAINING", "FREE", "DETACHED", "VM", "RETURNING", "STUCK", "HELD"])
def test_after_a_boot_everything_is_with_the_host(host: Folder, noted: str) -> None:
    host.write(STATE, f"state={noted}\nvm=103\nboot=another\nsince=1\ncontainers=950\n")
    host.write("/ct950", "stopped\n")
    run(host, "reconcile")
    assert state(host) == "" and host.read("/ct950") == "stopped\n", "onboot decides what runs"


def test_a_dead_card_stays_dead_after_a_boot_that_did_not_help(host: Folder) -> None:
    config = host.root / f"sys/bus/pci/devices/{GPU}/config"
    before = config.read_bytes()
    config.write_bytes(b"\xff" * 64)
    host.write(STATE, "state=DEAD\nvm=103\nboot=another\nsince=1\n")
    run(host, "reconcile")
    assert state(host) == "DEAD"
    config.write_bytes(before)
    run(host, "reconcile")
    assert state(host) == "DEAD", "in the same boot nothing is tried"
    host.write("/proc/sys/kernel/random/boot_id", "next\n")
    run(host, "reconcile")
    assert state(host) == ""


@pytest.mark.parametrize("noted", ["STUCK", "DEAD"])
def test_from_a_sink_nothing_is_taken(host: Folder, noted: str) -> None:
    host.write(STATE, f"state={noted}\nvm=103\nboot=boot\nsince=1\nwhy=it waits\n")
    done = host.bash(program("hook", "103", "pre-start"), parts=())
    assert done.returncode == 1 and f"{noted}: it waits" in done.stdout and state(host) == noted


def test_a_full_disk_keeps_the_card_where_it_is(host: Folder) -> None:
    host.write("/var/lib/homelab/handover", "a file where the folder is to be")
    done = host.bash(program("hook", "103", "pre-start"), parts=())
    assert done.returncode == 1 and "can't be noted on the disk" in done.stdout and is_with_the_host(host)


# -- who has it ------------------------------------------------------------------------------------------------------
LOOK = """\
read_card big; RUN=$ROOT/run; set +e; trap - ERR EXIT
find_holders "$ROOT/dev/control" 1:3 && printf '%s\\n' "${HOLDERS[@]}" || echo "failed: $LOOK_FAILED"
"""


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
    return host.sourced("handover_host.sh", LOOK, CARDS=LINE).stdout.strip()


def test_who_has_it_open_is_named_with_its_container(host: Folder) -> None:
    assert look(host) == ""
    assert look(host, 41, 42) == "ollama (PID 41 of container 950)\nollama (PID 42 of container 950)"


def test_memory_that_is_mapped_counts_without_a_descriptor(host: Folder) -> None:
    host.write("/proc/43/maps", "7f00-7f01 rw-s 00000000 00:05 103 /dev/nvidia0\n")
    host.write("/proc/44/maps", "7f00-7f01 rw-s 00000000 00:05 103 /dev/nvidia01\n")
    assert look(host) == "? (PID 43)"


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
    harm = "within() { sleep 300; }; GRACE_SECONDS=0; set +e; trap - ERR EXIT; RUN=$ROOT/run"
    done = host.sourced("handover_host.sh", f'{harm}; bounded 1 nvidia-smi; echo "status $?"', CARDS=LINE)
    assert done.stdout == "status 124\n", "and the pipe has ended, although what was started goes on"


# -- which VM names it -----------------------------------------------------------------------------------------------
MAPPINGS = "big\n\tmap id=10de:2b85,node=pve,path=0000:01:00\nother\n\tmap id=10de:2684,node=pve,path=0000:02:00\n"


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


def test_what_is_away_is_no_more_after_a_boot(host: Folder) -> None:
    host.write(STATE, "state=VM\nvm=103\nboot=boot\nsince=1\n")
    away = 'cards_away; echo "$AWAY"'
    assert host.bash(away, parts=("handover/rest",)).stdout.startswith("gpus.big is with VM 103 since 1970-01-01")
    host.write("/proc/sys/kernel/random/boot_id", "next\n")
    assert host.bash(away, parts=("handover/rest",)).stdout.strip() == ""
