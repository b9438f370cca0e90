"""What a script writes into sysfs on a running host, and NVIDIA's driver when it is to let go of a card."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.host.kernel import RunningKernel
from lab.host.state import HostState
from lab.processes import end_left_behind
from tests.lab.host_kit import Host
from tests.simulator.test_nvidia import changed
from tests.waiting import PATIENCE, wait_until

BUS = "$HOMELAB_ROOT/sys/bus/pci"
CARD, AUDIO, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"
UNBIND = f"echo {CARD} >{BUS}/drivers/nvidia/unbind"
OLLAMA = {"pid": 4711, "comm": "ollama", "container": 950, "card": CARD}
TO_VFIO = f"""
set -e
modprobe vfio-pci
for f in {CARD} {AUDIO}; do
  echo vfio-pci >{BUS}/devices/$f/driver_override
  [ ! -e {BUS}/devices/$f/driver ] || echo $f >{BUS}/devices/$f/driver/unbind
  echo $f >{BUS}/drivers/vfio-pci/bind
done
"""
TO_NVIDIA = f"""
set -e
for f in {CARD} {AUDIO}; do
  echo $f >{BUS}/drivers/vfio-pci/unbind
  echo >{BUS}/devices/$f/driver_override
  printf '%s\\n' $f >{BUS}/drivers_probe
done
"""


@pytest.fixture(autouse=True)
def end_of_the_host(tmp_path: Path) -> Iterator[None]:
    """What waits in the kernel outlives the bash that wrote, and would wait for as long as the host's folder is there."""
    yield
    end_left_behind(tmp_path)


def phoenix(path: Path, version: str = "580.105.08", *users: dict[str, Any]) -> Host:
    """A host with two cards of the driver, on which these programs use them; the persistence mode is off."""
    host = Host(path, changed("phoenix", version=version), running=True)
    host.machine.set_fault("card-users", list(users))
    return host


def begin(host: Host, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["bash", "-c", script], env=host.machine.environment(), cwd=host.root, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def messages(host: Host) -> str:
    return host.output("dmesg -t")


def waits(host: Host) -> None:
    wait_until(lambda: "non-zero usage count" in (host.machine.state / "dmesg").read_text())


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# -- writes ------------------------------------------------------------------------------------------------------
def test_a_write_acts_before_the_command_that_writes_has_returned(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    seen = host.output(f"{UNBIND}; test -e {BUS}/devices/{CARD}/driver || builtin echo gone at once")
    assert seen == "gone at once\n"
    assert host.driver(CARD) is None and host.driver(OTHER) == "nvidia"


def test_a_card_goes_to_vfio_and_back_function_by_function(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    host.output(TO_VFIO)
    assert [host.driver(f) for f in (CARD, AUDIO, OTHER)] == ["vfio-pci", "vfio-pci", "nvidia"]
    assert (host.root / "dev/vfio/14").exists()
    assert [p for p in host.programs() if p["program"] == "sysfs-write"] == [], "no new_id, no refusal"
    host.output(TO_NVIDIA)
    assert [host.driver(f) for f in (CARD, AUDIO)] == ["nvidia", "snd_hda_intel"]


@pytest.mark.parametrize(
    "how",
    [
        UNBIND,
        f"timeout 20 bash -c '{UNBIND}'",
        f"systemd-run --wait --pipe -q bash -c '{UNBIND}'",
        f"bash -s <<<'{UNBIND}'",
    ],
)
def test_whichever_bash_writes(tmp_path: Path, how: str) -> None:
    host = phoenix(tmp_path)
    host.output(how)
    assert host.driver(CARD) is None


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (f"echo {CARD} >{BUS}/drivers/vfio-pci/unbind", "No such device"),
        (f"printf '%s\\n' {CARD} >{BUS}/drivers/vfio-pci/bind", "Device or resource busy"),
        (f"echo 0000:99:00.0 >{BUS}/drivers_probe", "No such device"),
    ],
)
def test_a_refused_write_fails_for_the_writer_and_is_logged(tmp_path: Path, write: str, error: str) -> None:
    host = phoenix(tmp_path)
    done = host.run(f"modprobe vfio-pci\n{write}")
    assert done.returncode == 1 and done.stderr.endswith(f"write error: {error}\n") and "line 2: " in done.stderr
    assert [p["program"] for p in host.programs()][-1] == "sysfs-write"


def test_other_output_is_left_alone(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    assert (
        host.output(
            "set -eu; echo -n a; printf -v x '%s-%s' b c; printf '%s\\n' \"$x\" | cat; echo d >$HOMELAB_ROOT/root/d; cat $HOMELAB_ROOT/root/d"
        )
        == "ab-c\nd\n"
    )


# -- a card that somebody holds -----------------------------------------------------------------------------------
def test_who_holds_a_card_is_seen_in_proc_with_the_nodes_numbers_and_its_container(tmp_path: Path) -> None:
    unit = {"pid": 4712, "comm": "dcgm", "unit": "dcgm.service", "card": OTHER}
    host = phoenix(tmp_path, "580.105.08", OLLAMA, unit)
    look = "for p in $HOMELAB_ROOT/proc/[0-9]*; do stat -L -c '%n %t:%T %F' $p/fd/* 2>/dev/null; done | sed \"s|$HOMELAB_ROOT||\""
    uvm = f"{int((host.root / 'proc/devices').read_text().split(' nvidia-uvm')[0].split()[-1]):x}"
    assert host.output(look).splitlines() == [
        "/proc/4711/fd/3 c3:0 character special file",
        "/proc/4711/fd/4 c3:ff character special file",
        f"/proc/4711/fd/5 {uvm}:0 character special file",
    ]
    assert (
        host.output("cat $HOMELAB_ROOT/proc/4711/comm $HOMELAB_ROOT/proc/4711/cgroup")
        == "ollama\n0::/lxc/950/ns/system.slice/ollama.service\n"
    )
    host.write(
        "/etc/systemd/system/dcgm.service", "[Service]\nExecStart=/bin/true\nType=oneshot\nRemainAfterExit=yes\n"
    )
    host.output("systemctl start dcgm.service")
    assert "/proc/4712/fd/3 c3:1 character special file" in host.output(look)
    host.output("systemctl stop dcgm.service; pct shutdown 950")
    assert host.output(look) == ""


def test_an_unbind_waits_for_who_holds_the_card_and_the_other_card_goes_on(tmp_path: Path) -> None:
    host = phoenix(tmp_path, "580.105.08", {**OLLAMA, "opens": ["card"]})
    writer = begin(host, UNBIND)
    waits(host)
    assert writer.poll() is None
    assert host.driver(CARD) is None, "the link goes before the driver lets go"
    assert (host.root / f"proc/driver/nvidia/gpus/{CARD}").exists(), "and the driver's own entry after it"
    assert host.output("nvidia-smi -L").count("GPU ") == 1
    host.output("pct shutdown 950")
    assert writer.wait(PATIENCE) == 0
    assert "Continuing with GPU removal" in messages(host)
    assert not (host.root / f"proc/driver/nvidia/gpus/{CARD}").exists()


@pytest.mark.parametrize(
    ("version", "users", "never"),
    [
        ("590.48.01", [OLLAMA], False),
        ("595.45.04", [{**OLLAMA, "opens": ["card"]}], False),
        ("595.45.04", [OLLAMA], True),
        ("595.45.04", [{**OLLAMA, "hidden": True}], True),
    ],
)
def test_from_595_on_a_wait_for_what_the_kernel_holds_never_ends(
    tmp_path: Path, version: str, users: list[dict[str, Any]], never: bool
) -> None:
    host = phoenix(tmp_path, version, *users)
    writer = begin(host, UNBIND)
    waits(host)
    host.output("pct shutdown 950")
    if never:
        assert begin_ends(writer) is None
    else:
        assert writer.wait(PATIENCE) == 0
    end(writer)


def begin_ends(writer: subprocess.Popen[bytes]) -> int | None:
    """The exit status of one that has a moment in which it could have ended."""
    try:
        return writer.wait(0.3)
    except subprocess.TimeoutExpired:
        return None


def test_with_the_fault_an_unbind_never_ends_and_whoever_comes_after_it_waits_too(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    host.machine.set_fault("nvidia-unbind-forever", True)
    host.output("modprobe vfio-pci")
    first = begin(host, UNBIND)
    waits(host)
    others = [
        begin(host, f"echo {CARD} >{BUS}/drivers_probe"),
        begin(host, f"echo 8086 1539 >{BUS}/drivers/vfio-pci/new_id"),
    ]
    assert [begin_ends(one) for one in (first, *others)] == [None, None, None]
    host.output(f"echo {OTHER} >{BUS}/drivers/snd_hda_intel/unbind || true")
    first.terminate()  # it is bash that this ends; what waits in the kernel stays
    first.wait()
    assert host.machine.power() == "on" and host.driver(CARD) is None
    for one in others:
        end(one)
    host.machine.set_fault("nvidia-unbind-forever", None)
    host.reboot()
    assert host.driver(CARD) == "nvidia", "only a reboot helps"


def test_a_shutdown_ends_the_writes_that_wait_and_nothing_of_them_is_left(tmp_path: Path) -> None:
    host = phoenix(tmp_path, "580.105.08", {**OLLAMA, "opens": ["card"]})
    first = begin(host, UNBIND)
    waits(host)
    second = begin(host, f"echo {CARD} >{BUS}/drivers_probe")
    assert begin_ends(second) is None
    host.machine.shutdown()
    assert [first.wait(PATIENCE), second.wait(PATIENCE)] == [1, 1]
    assert [entry.name for entry in host.root.glob("proc/*")] == [] and host.machine.power() == "off"
    host.booted()
    assert host.driver(CARD) == "nvidia"


def test_two_who_change_the_kernel_come_one_after_the_other_and_nothing_is_lost(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    with RunningKernel.changing(HostState(host.machine.state)) as kernel:
        other = begin(host, "modprobe vfio-pci; systemctl stop cron.service; nvidia-smi -pm 1")
        assert begin_ends(other) is None
        kernel.loaded["mei_me"] = ""
    assert other.wait(PATIENCE) == 0
    running = HostState(host.machine.state).running
    assert {"mei_me", "vfio_pci"} <= set(running["loaded"]) and CARD in running["nvidia_persistence"]


@pytest.mark.parametrize(
    ("version", "options", "waits_long"),
    [
        ("570.133.07", "modeset=1", True),
        ("570.133.07", "modeset=0", False),
        ("580.65.06", "modeset=1", True),
        ("580.105.08", "modeset=1", False),
        ("595.45.04", "modeset=1", False),
    ],
)
def test_nvidia_drm_with_modeset_holds_the_card_before_580_105_08(
    tmp_path: Path, version: str, options: str, waits_long: bool
) -> None:
    host = Host(tmp_path, changed("phoenix", version=version))
    host.write("/etc/modprobe.d/zz.conf", f"options nvidia_drm {options}\n")
    host.booted()
    host.output("modprobe nvidia_drm")
    assert host.output("cat $HOMELAB_ROOT/sys/module/nvidia_drm/parameters/modeset") == (
        "Y\n" if options == "modeset=1" else "N\n"
    )
    writer = begin(host, UNBIND)
    if waits_long:
        waits(host)
        assert writer.poll() is None
        host.output("rmmod nvidia_drm")
    assert writer.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("opens", "module"),
    [("card", "nvidia"), ("uvm", "nvidia_uvm"), ("modeset", "nvidia_modeset"), ("dri", "nvidia_drm")],
)
def test_rmmod_says_in_use_at_once(tmp_path: Path, opens: str, module: str) -> None:
    host = phoenix(tmp_path, "580.105.08", {**OLLAMA, "opens": [opens]})
    order = ["nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia"]
    host.output("modprobe -a nvidia_drm nvidia_uvm")
    for name in order[: order.index(module)]:
        host.output(f"rmmod {name}")
    done = host.run(f"rmmod {module}")
    assert done.returncode == 1 and done.stderr == f"rmmod: ERROR: Module {module} is in use.\n"
    host.output(f"pct shutdown 950; rmmod {module}")
    assert module not in host.modules()


def test_minors_are_the_lowest_free_ones_at_each_bind(tmp_path: Path) -> None:
    host = phoenix(tmp_path)

    def minors() -> list[str]:
        return host.output(
            "sed -n 's/^Device Minor: *[[:space:]]*//p' $HOMELAB_ROOT/proc/driver/nvidia/gpus/*/information"
        ).split()

    assert minors() == ["0", "1"]
    host.output(f"{UNBIND}; echo {CARD} >{BUS}/drivers/nvidia/bind")
    assert minors() == ["0", "1"], "one away and back"
    both = f"{UNBIND}; echo {OTHER} >{BUS}/drivers/nvidia/unbind"
    host.output(f"{both}; echo {OTHER} >{BUS}/drivers/nvidia/bind; echo {CARD} >{BUS}/drivers/nvidia/bind")
    assert minors() == ["1", "0"], "both away, back in the other order"


# -- persistence and drain ------------------------------------------------------------------------------------------
def test_the_persistence_daemon_holds_a_card_until_its_mode_is_off_for_it(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    host.write("/etc/systemd/system/nvidia-persistenced.service", "[Service]\nExecStart=/usr/bin/nvidia-persistenced\n")
    host.output("systemctl start nvidia-persistenced; nvidia-smi -pm 1")
    query = "nvidia-smi --query-gpu=persistence_mode --format=csv,noheader"
    assert host.output(query).split() == ["Enabled", "Enabled"]
    assert host.output("cat $HOMELAB_ROOT/proc/812/comm") == "nvidia-persiste\n"
    writer = begin(host, UNBIND)
    waits(host)
    end(writer)
    host.reboot()
    host.output(f"systemctl start nvidia-persistenced; nvidia-smi -pm 1; nvidia-smi -i {CARD} -pm 0")
    assert host.output(query).split() == ["Disabled", "Enabled"]
    host.output(UNBIND)
    assert host.driver(CARD) is None


def test_a_card_that_drains_takes_nobody_new_and_keeps_who_is_there(tmp_path: Path) -> None:
    host = phoenix(tmp_path, "580.105.08", OLLAMA)
    host.output("nvidia-smi -pm 1")
    refused = host.run(f"nvidia-smi drain -p {CARD} -m 1")
    assert refused.returncode == 19 and "In use by another client" in refused.stderr
    host.output(f"nvidia-smi -i {CARD} -pm 0")
    assert (
        host.output(f"nvidia-smi drain -p {CARD} -m 1")
        == f"Successfully set GPU 0000{CARD} drain state to: draining.\n"
    )
    assert host.run(f"nvidia-smi -i {CARD}").returncode == 6
    assert host.output("nvidia-smi -L").count("GPU ") == 1
    host.machine.set_fault("card-users", [OLLAMA, {"pid": 4800, "comm": "late", "card": CARD}])
    assert host.output("ls $HOMELAB_ROOT/proc/4711/fd").split() == ["3", "4", "5"]
    assert (host.root / "proc/4800/fd").is_dir() and "nvidia0" not in host.output(
        "readlink $HOMELAB_ROOT/proc/4800/fd/*"
    )
    host.output(f"nvidia-smi drain -p {CARD} -m 0")
    assert host.run(f"nvidia-smi -i {CARD}").returncode == 0


def test_nvidia_smi_finds_no_card_that_is_on_vfio_pci(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    host.output(TO_VFIO)
    done = host.run(f"nvidia-smi -i {CARD}")
    assert (done.returncode, done.stdout) == (6, "No devices were found\n")
    assert (
        host.output("nvidia-smi -i 0000:02:00.0 --query-gpu=pci.bus_id --format=csv,noheader") == "00000000:02:00.0\n"
    )


# -- with Proxmox ----------------------------------------------------------------------------------------------------
def test_a_start_that_takes_a_held_card_by_itself_waits_without_end(tmp_path: Path) -> None:
    host = phoenix(tmp_path, "580.105.08", {**OLLAMA, "opens": ["card"]})
    host.output("qm stop 103; qm set 103 --hostpci0 0000:01:00,pcie=1")
    start = begin(host, "qm start 103")
    assert begin_ends(start) is None and host.driver(CARD) == "nvidia"
    host.output("pct shutdown 950")
    assert start.wait(PATIENCE) == 0 and host.driver(CARD) == "vfio-pci"


def test_a_card_that_a_reset_kills_reads_as_ones_and_nvidia_does_not_take_it(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    host.machine.set_fault("reset-kills", "01:00.0")
    read = f"head -c 4 {BUS}/devices/{CARD}/config | od -An -tx1"
    host.output("qm stop 103; qm set 103 --hostpci0 0000:01:00,pcie=1; qm start 103")
    assert host.output(read).split() == ["de", "10", "85", "2b"]
    host.output("qm stop 103")
    assert host.output(read).split() == ["ff"] * 4
    # The start has made the card's ids known to vfio-pci, and nobody takes that back: a probe alone would give it to that again.
    host.run(f"echo {CARD} >{BUS}/drivers/vfio-pci/unbind; echo nvidia >{BUS}/devices/{CARD}/driver_override")
    refused = host.run(f"echo {CARD} >{BUS}/drivers/nvidia/bind")
    assert refused.returncode == 1 and host.driver(CARD) is None and "fallen off the bus" in messages(host)


def test_a_dead_card_is_a_fault_that_can_be_taken_back(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    config = host.root / f"sys/bus/pci/devices/{CARD}/config"
    before = config.read_bytes()
    host.machine.set_fault("card-dead", "0000:01:00")
    assert config.read_bytes() == b"\xff" * 64 and host.run(f"nvidia-smi -i {CARD}").returncode == 6
    host.machine.set_fault("card-dead", None)
    assert config.read_bytes() == before


# -- systemd-run -----------------------------------------------------------------------------------------------------
def test_systemd_run_hands_its_streams_over_with_pipe_alone(tmp_path: Path) -> None:
    host = phoenix(tmp_path)
    run = "systemd-run -q --wait --collect --unit=x"
    assert host.output(f"echo in | {run} --pipe cat") == "in\n"
    assert host.output(f"{run} echo out") == ""
    assert host.run(f"{run} bash -c 'exit 3'").returncode == 3
    assert host.run(f"{run} -p RuntimeMaxSec=1s sleep 30").returncode != 0
