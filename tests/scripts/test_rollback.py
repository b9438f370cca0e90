"""The dead man's switch on a whole host: when it is armed, what it decides, and that nothing stops it.

A run of its program is what the timer starts; the host is the lab's, without a daemon, so that nothing really restarts.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import agent, scripts
from lab.machine import Machine
from remote_scripts.layers.confirm_boot import Wanted as ConfirmBoot
from tests import sampling
from tests.boot_layers import Asked, initramfs, iommu, read_host, reboot, vfio
from tests.lab.test_real_hosts import be_no_proxmox
from tests.scripts.test_on_a_host import IOMMU, VFIO, Host
from tests.waiting import PATIENCE, writer_of

AFTER = 20
LAYERS = {
    "iommu": iommu(IOMMU, rollback_after=AFTER),
    "initramfs": initramfs(rollback_after=AFTER),
    "vfio": vfio(VFIO, rollback_after=AFTER),
}
LOADERS = ["rtx5090", "intel-zfs", "zfs-grub-shim"]  # GRUB; systemd-boot; GRUB by proxmox-boot-tool
WORDS = [*IOMMU.split(), VFIO]
SHORT_WAITS = {"REBOOT_SECONDS": "0", "RETRY_SECONDS": "0", "LOCK_TIMEOUT": "1"}


def confirmation(**wanted: Any) -> Asked:
    return Asked("confirm_boot", ConfirmBoot(**wanted))


def put_agent(host: Host) -> None:
    """As a stack's first resource does it."""
    command = agent.command_to_put("root")
    environment = host.machine.environment()
    subprocess.run(["bash", "-c", command], input=agent.put("test"), env=environment, text=True, check=True)


class Switched(Host):
    """A host with all layers configured, in the boot after that."""

    def __init__(self, state: Path, scenario: str, *, awaited: bool = False, configured: bool = True) -> None:
        super().__init__(state, scenario)
        put_agent(self)
        self.stock = self.files()
        if not configured:
            return
        for script in LAYERS.values():
            assert self.run("apply", script).returncode == 0
        if awaited:
            self.machine.set_fault("reboot-ignored", True)
            # For longer than any session of pytest: who makes a host once has tests that come to it late.
            waits = reboot(" ".join(WORDS), rollback_after=AFTER, awaited=7 * 24 * 3600)
            assert '"reboot":"yes"' in self.run("apply", waits).stdout
            self.machine.clear_faults()
        self.boot()

    @property
    def state(self) -> Path:
        return self.root / "var/lib/homelab"

    def boot(self) -> str:
        """Restarts it, and says with which command line."""
        self.machine.shutdown()
        result = self.machine.boot("power")
        assert result.comes_up, result.problem
        be_no_proxmox(self.machine)
        return result.cmdline

    def is_armed(self) -> bool:
        """Will the next boot be looked at?"""
        return (self.root / "etc/systemd/system/timers.target.wants/homelab-rollback.timer").is_symlink()

    def elapse(
        self, *arguments: str, timeout: float = PATIENCE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """What the timer runs."""
        return subprocess.run(
            ["sh", str(self.state / "rollback"), *(arguments or [str(AFTER)])],
            env={**self.environment, **SHORT_WAITS, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    @property
    def environment(self) -> dict[str, str]:
        return self.machine.environment()

    def reboots(self) -> list[list[str]]:
        """With which options it was told to reboot."""
        log = self.machine.state / "log/programs.jsonl"
        runs = [json.loads(line) for line in log.read_text().splitlines()]
        return [run["args"] for run in runs if run["program"] == "systemctl" and "reboot" in run["args"]]

    def spoil(self, command: str, text: str) -> None:
        """Another program in the place of a command."""
        path = self.root / "usr/local/sbin" / command
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def mend(self, command: str) -> None:
        (self.root / "usr/local/sbin" / command).unlink()

    def confirm(self) -> dict[str, object]:
        answer: dict[str, object] = json.loads(self.run("apply", confirmation()).stdout)
        if answer["judged"]:
            assert (self.state / "judged").exists(), "it is kept until somebody was told"
            self.run("apply", confirmation(judged_told=True))
        return answer

    def is_rolling(self) -> bool:
        """Is its restart to be waited for?"""
        return bool(json.loads(self.run("read", read_host()).stdout)["rolling_back"])

    def differs(self) -> set[str]:
        """The files that aren't as in the stock host, but for what is told to people."""
        now = self.files()
        names = {path for path in {*now, *self.stock} if now.get(path) != self.stock.get(path)}
        return {path.removeprefix(str(self.machine.state)) for path in names} - {
            # By these the next boot starts what ran before (tests/agent/test_guests_to_start.py), and takes them away.
            "/root/etc/systemd/system/homelab-ran.service",
            "/root/etc/systemd/system/homelab-ran.timer",
            "/root/var/lib/homelab/ran",
            "/root/var/lib/homelab/ran-program",
            "/root/var/lib/homelab/rolled-back",
            "/root/var/lib/homelab/wanted-boot",
            "/root/boot/grub/grubenv",
        }


#: What was in the files of a stock host, by the folder of the one that was made of it.
_stock: dict[Path, dict[str, bytes]] = {}


@pytest.fixture(scope="session")
def kept_hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("switched")


@pytest.fixture
def switched(kept_hosts: Path) -> Callable[..., Switched]:
    """Made once in a process for each scenario, and brought back to what it was then: one in a test."""

    def make(scenario: str = "rtx5090", *, awaited: bool = False) -> Switched:
        place = kept_hosts / f"{scenario}{'-awaited' * awaited}"
        kept = place.with_name(f"{place.name}-kept")
        if place not in _stock:
            host = Switched(place, scenario, awaited=awaited)
            _stock[place] = host.stock
            subprocess.run(["cp", "-a", place, kept], check=True)
            return host
        shutil.rmtree(place)
        subprocess.run(["cp", "-a", kept, place], check=True)
        host = Switched.__new__(Switched)
        host.machine, host.root, host.stock = Machine.open(place), place / "root", _stock[place]
        return host

    return make


# -- arming -----------------------------------------------------------------------------------------------------
def test_an_apply_that_writes_nothing_arms_nothing(switched: Callable[..., Switched]) -> None:
    host = switched()
    host.confirm()
    before = host.files()
    for script in LAYERS.values():
        assert scripts.answer(host.run("apply", script).stdout)["changed"] in ("no", False)
    assert host.files() == before
    assert not host.is_armed()


def test_an_apply_that_fails_leaves_no_switch_behind(tmp_path: Path) -> None:
    host = Host(tmp_path / "lab", "rtx5090")
    host.machine.set_fault("update-initramfs", "fail")
    assert host.run("apply", LAYERS["initramfs"]).returncode == 1
    assert not list((host.root / "etc/systemd/system").rglob("homelab*"))


def test_one_layer_given_back_leaves_the_switch_for_the_other(switched: Callable[..., Switched]) -> None:
    host = switched()
    host.run("revert", LAYERS["vfio"])
    host.run("revert", LAYERS["initramfs"])
    assert host.is_armed()
    host.run("revert", LAYERS["iommu"])
    assert not host.is_armed()
    assert host.differs() == set()


def test_a_manual_reboot_has_a_switch_too(switched: Callable[..., Switched]) -> None:
    host = switched()
    assert host.is_armed()
    assert "until" not in (host.state / "armed").read_text()


def test_a_reboot_that_could_not_be_ordered_is_waited_for_by_nobody(tmp_path: Path) -> None:
    """A person restarts the host then, and may take longer for the next `up` than the switch's time."""
    host = Switched(tmp_path / "lab", "rtx5090", configured=False)
    assert host.run("apply", LAYERS["iommu"]).returncode == 0
    host.spoil("systemd-run", "echo no bus; exit 1")
    done = host.run("apply", reboot(IOMMU, rollback_after=AFTER))
    assert done.returncode == 1 and "reboot it by hand" in done.stdout
    assert "until" not in (host.state / "armed").read_text()
    host.boot()
    host.elapse()
    assert (host.state / "judged").exists()


def test_the_time_until_a_boot_is_looked_at_is_that_of_its_system(switched: Callable[..., Switched]) -> None:
    """Not of an initramfs that waits for a passphrase; and it passes in emergency mode, too, which has none of sysinit.target."""
    timer = (switched().root / "etc/systemd/system/homelab-rollback.timer").read_text()
    assert f"\nOnStartupSec={AFTER}s\n" in timer
    assert "\nDefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n" in timer


# -- what it decides --------------------------------------------------------------------------------------------
def test_an_awaited_boot_that_nobody_confirms_is_undone(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    boot_id = (host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    host.elapse()
    assert (host.state / "rolled-back").read_text() == f"boot {boot_id} was not confirmed within 20 s of its start"
    assert host.reboots()[-3:] == [["reboot"], ["reboot", "--force"], ["reboot", "--force", "--force"]]
    # Where none of them ends the boot, the kernel does.
    assert (host.root / "proc/sysrq-trigger").read_text() == "b"
    assert not host.is_armed()
    assert host.differs() == set()
    assert not set(WORDS) & set(host.boot().split())


def test_what_a_run_that_was_cut_short_has_left_goes_with_the_rest(switched: Callable[..., Switched]) -> None:
    """By a power cut in the boot before, or in the middle of the roll-back; its program knows of neither."""
    host = switched(awaited=True)
    for name in ("etc/default/grub.d/.zz-homelab-vfio.cfg", "var/lib/homelab/.rolling-back"):
        (host.root / f"{name}.homelab-tmp").write_text("half of it")
    host.elapse()
    assert not host.is_armed()
    assert host.differs() == set()


def test_a_boot_that_nobody_waits_for_any_more_is_judged(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    armed = host.state / "armed"
    armed.write_text(
        "".join(f"until {10**9}\n" if line.startswith("until") else line for line in armed.read_text().splitlines(True))
    )
    host.elapse()
    assert (host.state / "judged").exists()


def test_a_healthy_host_that_nobody_waits_for_stays_and_says_so(switched: Callable[..., Switched]) -> None:
    host = switched()
    configured = host.boot()
    host.elapse()
    said = "vmbr0 is up with 192.168.0.202, its gateway 192.168.0.1 answers, and sshd listens on port 22"
    assert (host.state / "judged").read_text().endswith(f"judged by this host itself 20 s after its start: {said}")
    assert not host.is_armed()
    assert host.reboots() == []
    assert host.boot() == configured
    reading = json.loads(host.run("read", read_host()).stdout)
    assert said in reading["judged"] and reading["rolled_back"] == ""
    assert host.confirm()["confirmed"]
    assert not (host.state / "judged").exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no-network-when", "no interface that is up has 192.168.0.202"),
        ("no-address-when", "no interface that is up has 192.168.0.202"),
        ("no-sshd-when", "nothing listens on port 22"),
        ("gateway-silent-when", "no default gateway answers"),
    ],
)
def test_a_host_out_of_reach_that_nobody_waits_for_is_undone(
    switched: Callable[..., Switched], fault: str, said: str
) -> None:
    host = switched()
    host.machine.set_fault(fault, "homelab.vfio")
    host.boot()
    host.elapse()
    assert said in (host.state / "rolled-back").read_text()
    assert host.differs() == set()
    assert host.reboots()
    assert not set(WORDS) & set(host.boot().split())


def test_a_gateway_that_answers_no_ping_is_known_by_its_hardware_address(switched: Callable[..., Switched]) -> None:
    host = switched()
    host.spoil("ping", "exit 1")
    host.elapse()
    assert "its gateway 192.168.0.1 answers" in (host.state / "judged").read_text()


def test_a_gateway_that_never_answered_is_not_asked(switched: Callable[..., Switched]) -> None:
    host = switched()
    host.machine.set_fault("gateway-silent-when", "BOOT_IMAGE")
    host.boot()
    armed = host.state / "armed"
    armed.write_text(re.sub("(?m)^gateway .*$", "gateway ", armed.read_text()))
    host.elapse()
    assert (
        "its gateway was not asked, since none answered when it was configured" in (host.state / "judged").read_text()
    )


@pytest.mark.parametrize("what", ["none", "a broken one", "no Python", "one that hangs"])
def test_without_an_answer_of_the_agent_a_boot_is_given_back_as_far_as_that_counts(
    switched: Callable[..., Switched], what: str
) -> None:
    """The words and the boot; the rest once there is one."""
    host = switched()
    whole = (host.root / agent.place("test")[1:]).read_bytes()
    place = host.root / agent.place("test")[1:]
    if what == "none":
        place.unlink()
    elif what == "a broken one":
        place.write_bytes(whole[:-1] + b"x")
    else:
        host.spoil(
            "timeout",
            f"""case "$*" in *python3*) {"exit 127" if what == "no Python" else "exit 137"} ;; esac; exec /usr/bin/timeout "$@" """,
        )
    host.elapse()
    told = "was not confirmed within 20 s of its start, and this program's agent doesn't say whether it is in order"
    assert told in (host.state / "rolled-back").read_text()
    for _ in range(2):
        assert len(host.reboots()) == 3 and host.is_armed()
        assert not set(WORDS) & set(host.boot().split())
        host.elapse()
    place.write_bytes(whole)
    if what not in ("none", "a broken one"):
        host.mend("timeout")
    host.elapse()
    finished_by_the_next_boot(host)


def test_an_agent_that_is_whole_is_asked_where_another_stacks_is_broken(switched: Callable[..., Switched]) -> None:
    host = switched()
    other = host.root / agent.place("a-broken")[1:]
    other.parent.mkdir()
    other.write_bytes(b"half")
    host.elapse()
    assert "judged by this host itself" in (host.state / "judged").read_text() and host.reboots() == []


def test_what_can_not_be_told_is_decided_on_the_safe_side(switched: Callable[..., Switched]) -> None:
    host = switched()
    armed = host.state / "armed"
    armed.write_text("".join(line for line in armed.read_text().splitlines(True) if not line.startswith("address")))
    host.elapse()
    assert "it is not known over which address this host is reached" in (host.state / "rolled-back").read_text()


def test_the_boot_in_which_it_was_armed_is_left_alone(tmp_path: Path) -> None:
    host = Switched(tmp_path / "lab", "rtx5090", configured=False)
    host.run("apply", LAYERS["iommu"])
    before = host.files()
    assert host.elapse().returncode == 0
    assert host.files() == before


def driver_reboot(words: str = "") -> Asked:
    """The reboot for NVIDIA's driver on the host, which nouveau's having a card makes necessary."""
    return reboot(words, rollback_after=AFTER, driver="580.95.05")


def test_a_reboot_for_the_hosts_driver_alone_has_no_switch(tmp_path: Path) -> None:
    host = Host(tmp_path / "lab", "rtx5090")
    host.machine.set_fault("reboot-ignored", True)
    done = host.run("apply", driver_reboot())
    assert '"reboot":"yes"' in done.stdout and "not on NVIDIA's driver" in done.stdout, done.stdout
    assert not list((host.root / "etc/systemd/system").rglob("homelab-rollback*"))


def test_a_reboot_for_the_hosts_driver_leaves_a_confirmed_configuration_alone(
    switched: Callable[..., Switched],
) -> None:
    """It boots what runs already. Nobody may confirm it in time (a laptop sleeps), and the VM's card would be gone."""
    host = switched()
    host.confirm()
    configured = host.boot()
    host.machine.set_fault("reboot-ignored", True)
    loaded = host.root / "proc/driver/nvidia/version"
    loaded.parent.mkdir(parents=True)
    loaded.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.195.03  Release Build\n")
    assert '"reboot":"yes"' in host.run("apply", driver_reboot(" ".join(WORDS))).stdout
    assert not host.is_armed()
    host.machine.clear_faults()
    assert host.boot() == configured


def test_a_boot_with_nothing_of_ours_has_nothing_to_give_back_and_stays(tmp_path: Path) -> None:
    """The last words were given back, with the switch armed for that; nobody came to confirm."""
    host = Switched(tmp_path / "lab", "rtx5090", configured=False)
    host.run("apply", LAYERS["iommu"])
    host.boot()
    host.confirm()
    assert host.run("apply", iommu("", rollback_after=AFTER)).returncode == 0
    assert host.is_armed()
    host.boot()
    host.elapse()
    assert host.reboots() == []
    assert "there is nothing to give back" in (host.state / "judged").read_text()
    assert not host.is_armed()


def by_the_second_entry(host: Switched) -> None:
    entry = next(
        line.split("'")[3]
        for line in (host.root / "boot/grub/grub.cfg").read_text().splitlines()
        if "'homelab-without-gpu-" in line and "menuentry '" in line
    )
    host.bash(f"grub-reboot '{entry}'")
    assert not set(WORDS) & set(host.boot().split())


def test_a_boot_by_the_second_entry_shows_nothing_of_the_configured_one(switched: Callable[..., Switched]) -> None:
    """Neither the host itself nor whoever confirms it disarms the switch: the next boot is the one to look at."""
    host = switched()
    host.machine.set_fault("no-network-when", "homelab.vfio")
    by_the_second_entry(host)
    host.elapse()
    assert host.is_armed() and host.reboots() == []
    assert "runs without what is configured" in (host.state / "judged").read_text()
    assert host.confirm()["confirmed"], "it can be worked on"
    assert host.is_armed() and not (host.state / "judged").exists()
    host.bash("grub-editenv - unset next_entry")  # GRUB can't on LVM
    assert set(WORDS) < set(host.boot().split())
    host.elapse()
    assert "no interface that is up has 192.168.0.202" in (host.state / "rolled-back").read_text()
    finished_by_the_next_boot(host)


# -- nothing stops it -------------------------------------------------------------------------------------------
# It hangs, and doesn't end at SIGTERM. The step's time is up at once: timeout(1) is told so by the signal of its own timer.
HANGS = """\
trap '' TERM
process=$$
while ((process > 1)); do
  while read -r key value; do
    # What a command server runs is called after who asked.
    [[ $key != Name: || $value != lab/* ]] || { process=${value#lab/}; break; }
    [[ $key != PPid: ]] || { process=$value; break; }
  done <"/proc/$process/status"
  mapfile -d '' -t words <"/proc/$process/cmdline"
  [[ ${words[*]} == 'timeout -s KILL '* ]] || continue
  # Not before it waits: until it knows its child, it ends alone.
  until read -r key <"/proc/$process/stat" && [[ $key == *') S '* ]]; do :; done
  kill -ALRM "$process"
  break
done
exec sleep 100"""


def finished_by_the_next_boot(host: Switched) -> None:
    """Whatever failed, the next boot was without our words, and the one after that had nothing left to do."""
    assert host.reboots(), "it was not told to reboot"
    host.machine.clear_faults()
    words = host.boot().split()
    assert not set(WORDS) & set(words)
    if host.is_armed():
        assert host.confirm()["confirmed"] == ""
        host.elapse()
    assert not host.is_armed()
    assert host.differs() == set()
    assert (host.state / "rolled-back").exists()


@pytest.mark.parametrize(
    ("scenario", "command"),
    [
        ("rtx5090", "update-grub"),
        ("rtx5090", "update-initramfs"),
        *(
            ("rtx5090", command)
            for command in sampling.sample(["grub-reboot", "sync", "sha256sum", "find"], 2, "steps")
        ),
        *sampling.sample(
            [
                ("intel-zfs", "proxmox-boot-tool"),
                ("intel-zfs", "update-initramfs"),
                ("zfs-grub-shim", "proxmox-boot-tool"),
            ],
            1,
            "ESPs",
        ),
    ],
)
def test_a_step_that_fails_or_hangs_does_not_stop_it(
    switched: Callable[..., Switched], scenario: str, command: str
) -> None:
    """One of both. What makes something of what is configured always fails; of the rest, some."""
    ways = {"fails": "exit 1", "hangs": HANGS}
    for how in sampling.sample(list(ways), 1, f"{scenario} {command}"):
        host = switched(scenario, awaited=True)
        host.spoil(command, ways[how])
        host.elapse(STEP_SECONDS="60")
        host.mend(command)
        finished_by_the_next_boot(host)


def test_half_a_menu_is_not_what_the_next_boot_gets(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    host.spoil("update-grub", 'rm "$ROOT/boot/grub/grub.cfg"; echo "set default=0" >"$ROOT/boot/grub/grub.cfg"; exit 1')
    host.elapse()
    host.mend("update-grub")
    finished_by_the_next_boot(host)


def test_without_a_second_entry_the_words_are_taken_out_of_what_was_generated(tmp_path: Path) -> None:
    host = Switched(tmp_path / "lab", "rtx5090", configured=False)
    host.run("apply", LAYERS["iommu"])
    host.machine.set_fault("gateway-silent-when", "BOOT_IMAGE")
    host.boot()
    host.machine.set_fault("update-grub", "fail")
    host.elapse()
    finished_by_the_next_boot(host)


def test_both_ways_to_the_next_boot_without_us_are_enough_alone(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    configured = (host.root / "boot/grub/grub.cfg").read_text()
    host.machine.set_fault("update-grub", "fail")
    host.elapse()
    (host.root / "boot/grub/grub.cfg").chmod(0o644)
    (host.root / "boot/grub/grub.cfg").write_text(configured)  # as if it could not have been written
    finished_by_the_next_boot(host)


def test_a_way_that_hangs_leaves_the_other_one(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    host.machine.set_fault("update-grub", "fail")
    host.spoil("grub-reboot", HANGS)
    host.elapse(STEP_SECONDS="60")
    host.mend("grub-reboot")
    finished_by_the_next_boot(host)


def test_what_a_step_has_started_ends_with_it(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    host.spoil("update-grub", f"echo $$ >{host.machine.state}/pid\n{HANGS}")
    host.elapse(STEP_SECONDS="60")
    process = Path("/proc", (host.machine.state / "pid").read_text().strip())
    # One that nobody has waited for yet has no command line.
    assert not process.exists() or not (process / "cmdline").read_bytes()


@pytest.mark.parametrize("scenario", sampling.sample(LOADERS, 1, "cut off"))
def test_a_roll_back_that_was_cut_off_restarts_the_boot_that_runs_with_our_words(
    switched: Callable[..., Switched], scenario: str
) -> None:
    host = switched(scenario, awaited=True)
    program = host.state / "rollback"
    text = program.read_text()
    begun = '  step 60 begin "$reason" || noted=no\n'
    program.write_text(text.replace(begun, f"{begun}  kill -KILL $$\n"))
    assert host.elapse().returncode == -signal.SIGKILL
    program.write_text(text)
    assert set(WORDS) & set(host.boot().split())
    host.elapse()
    assert host.differs() == set()
    finished_by_the_next_boot(host)


def test_a_disk_that_takes_no_note_is_no_reason_to_restart_again_and_again(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    host.spoil("mv", 'case "$*" in *rolling-back*) exit 1 ;; esac; exec /usr/bin/mv "$@"')
    host.elapse()
    assert len(host.reboots()) == 3
    for _ in range(2):
        assert not set(WORDS) & set(host.boot().split())
        host.elapse()
    assert len(host.reboots()) == 3
    host.mend("mv")
    host.elapse()
    finished_by_the_next_boot(host)


def test_boots_that_keep_our_words_are_not_restarted_for_ever(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    host.machine.set_fault("update-grub", "fail")
    host.spoil("grub-reboot", "exit 1")
    host.spoil("mv", 'case "$*" in *grub.cfg) exit 1 ;; esac; exec /usr/bin/mv "$@"')
    restarts = []
    for _ in range(6):
        assert set(WORDS) & set(host.boot().split())
        before = len(host.reboots())
        host.elapse()
        restarts.append(len(host.reboots()) - before)
    assert restarts == [3, 3, 3, 3, 0, 0]
    # It rests, and the next run takes over.
    host.machine.clear_faults()
    host.mend("mv")
    assert host.run("apply", LAYERS["iommu"]).returncode == 0


def test_a_roll_back_that_can_not_be_finished_restarts_once_and_rests(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    host.machine.set_fault("update-initramfs", "fail")
    host.elapse()
    assert len(host.reboots()) == 3
    for _ in range(2):
        assert not set(WORDS) & set(host.boot().split())
        host.elapse()
        assert host.is_armed()
    assert len(host.reboots()) == 3
    reading = json.loads(host.run("read", read_host()).stdout)
    assert reading["rolled_back"] and not reading["rolling_back"]
    # What rests is no obstacle to the next `up`.
    host.machine.clear_faults()
    assert host.run("apply", LAYERS["iommu"]).returncode == 0
    assert not (host.state / "rolled-back").exists()


READ_ONLY = """\
set -eu
for place; do "$MOUNT" --bind "$ROOT/$place" "$ROOT/$place"; "$MOUNT" -o remount,ro,bind "$ROOT/$place"; done
exec sh "$ROOT/var/lib/homelab/rollback" 20
"""


def elapse_read_only(host: Switched, *places: str) -> str:
    """What the timer runs, with these folders on a file system that has become read-only; what it said."""
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    mount = shutil.which("mount") or "mount"
    if subprocess.run([*namespace, mount, "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount anything in a namespace of their own")
    done = subprocess.run(
        [*namespace, "bash", "-c", READ_ONLY, "-", *places],
        env={**host.machine.environment(), **SHORT_WAITS, "MOUNT": mount},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_host_that_can_write_nothing_says_so_and_is_not_restarted(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    for _ in range(2):
        said = elapse_read_only(host, "etc", "var", "boot")
        told = (host.root / "dev/kmsg").read_text()
        for text in (said, told):
            assert (
                "was not confirmed within 20 s" in text
                and "not writable: /var/lib/homelab, not writable: /etc, not writable: /boot" in text
            )
            assert "Choose the entry 'without GPU passthrough'" in text
        assert host.reboots() == []
        assert not host.is_rolling()
        assert host.is_armed() and set(WORDS) < set(host.boot().split())
    # Once it can be written again, whoever comes first goes on: the switch.
    host.elapse()
    finished_by_the_next_boot(host)


@pytest.mark.parametrize(
    ("scenario", "places"),
    [("rtx5090", ("etc", "var")), ("intel-zfs", ("etc", "var", "boot")), ("zfs-grub-shim", ("etc", "var", "boot"))],
    ids=["a /boot of its own", "ESPs with systemd-boot", "ESPs with GRUB"],
)
def test_a_read_only_root_still_gets_a_boot_without_us_and_one_restart(
    switched: Callable[..., Switched], scenario: str, places: tuple[str, ...]
) -> None:
    host = switched(scenario, awaited=True)
    elapse_read_only(host, *places)
    assert len(host.reboots()) == 3
    for _ in range(2):
        assert host.is_armed()
        if set(WORDS) & set(host.boot().split()):  # the choice of an entry is for one boot
            break
        elapse_read_only(host, *places)
        assert len(host.reboots()) == 3, "there is nothing to restart for"
    # The disk is well again: the next run brings what is configured into the boot, with its switch.
    assert host.run("apply", LAYERS["vfio"]).returncode == 0
    assert set(WORDS) < set(host.boot().split())
    assert host.is_armed()


def test_a_run_that_holds_the_lock_does_not_stop_it(switched: Callable[..., Switched]) -> None:
    """It is waited for once: by the switch, and not by the agent again."""
    began = time.monotonic()
    host = switched(awaited=True)
    (host.root / "run/homelab").mkdir(mode=0o700, parents=True, exist_ok=True)
    with (host.root / "run/homelab/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        host.elapse()
    assert time.monotonic() - began < 45
    finished_by_the_next_boot(host)


def test_what_can_not_be_told_is_not_disarmed(switched: Callable[..., Switched]) -> None:
    """`rolled-back` is written before the switch goes."""
    host = switched(awaited=True)
    (host.state / "rolled-back").mkdir()
    (host.state / "rolled-back" / "in-the-way").touch()
    host.elapse()
    assert host.reboots() and host.is_armed()
    shutil.rmtree(host.state / "rolled-back")
    finished_by_the_next_boot(host)


# -- it is never contradicted -----------------------------------------------------------------------------------
def test_a_confirmed_boot_is_not_undone(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    program = (host.state / "rollback").read_text()
    assert host.confirm()["confirmed"]
    (host.state / "rollback").parent.mkdir(exist_ok=True)
    (host.state / "rollback").write_text(program)  # the timer had just elapsed
    configured = host.boot()
    host.elapse()
    assert host.reboots() == []
    assert host.boot() == configured


def test_a_confirmation_that_can_not_be_written_says_so(switched: Callable[..., Switched]) -> None:
    """Told nothing, `up` would ask again and again."""
    host = switched()
    (
        host.state / ".armed.taken.homelab-tmp"
    ).mkdir()  # over which `mv` moves no file, as none on a file system that is read-only
    done = host.run("apply", confirmation())
    assert done.returncode == 1
    assert "wanted: this boot confirmed" in done.stdout and "Is a directory" in done.stdout


def test_a_boot_is_confirmed_while_another_run_is_at_work(switched: Callable[..., Switched]) -> None:
    """Such as the one that starts containers again at each boot, for longer than the switch waits."""
    host = switched(awaited=True)
    (host.root / "run/homelab").mkdir(mode=0o700, parents=True, exist_ok=True)
    with (host.root / "run/homelab/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = host.run("apply", confirmation(lock_seconds=1))
        assert json.loads(done.stdout)["confirmed"], done.stdout
    assert not (host.state / "armed").exists()
    host.elapse()
    assert host.reboots() == [] and not host.is_armed()
    assert not list((host.root / "etc/systemd/system").rglob("homelab-rollback*"))


def test_a_boot_that_another_run_awaits_is_not_confirmed(switched: Callable[..., Switched]) -> None:
    """It was asked just before the host goes down."""
    host = switched(awaited=True)
    running = (host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    answer = json.loads(host.run("apply", confirmation(unless=running)).stdout)
    assert (answer["boot"], answer["confirmed"]) == (running, "")
    assert (host.state / "armed").exists() and host.is_armed()


def test_a_boot_before_which_the_menu_was_not_made_leaves_the_switch_to_the_next_one(
    switched: Callable[..., Switched],
) -> None:
    host = switched(awaited=True)
    (host.state / "pending").mkdir()
    (host.state / "pending/boot").touch()
    assert json.loads(host.run("read", read_host()).stdout)["pending"] == ["boot"]
    assert host.confirm()["confirmed"] and host.is_armed()
    assert "until" not in (host.state / "armed").read_text()
    decide = reboot(f"{' '.join(WORDS)} mitigations=off", rollback_after=AFTER)
    done = host.run("apply", decide)
    assert done.returncode == 1 and "the boot configuration was not made after the last change" in done.stdout
    assert host.reboots() == []


def test_a_boot_for_which_the_switch_was_armed_anew_is_confirmed_anew(switched: Callable[..., Switched]) -> None:
    """Pulumi runs the verification, which confirms it, where the answer of the reboot is another one."""
    host = switched()
    host.confirm()
    decide = reboot(" ".join(WORDS), rollback_after=AFTER)
    confirmed = host.run("apply", decide).stdout
    assert '"reboot":"no"' in confirmed and '"armed":""' in confirmed
    script = host.root / "etc/initramfs-tools/scripts/init-top/homelab-vfio"
    script.write_text(script.read_text().replace("homelab-vfio: ", "homelab: "))  # as another version has written it
    host.run("apply", LAYERS["initramfs"])
    once = host.run("apply", decide).stdout
    assert '"reboot":"no"' in once and '"armed":""' not in once
    host.confirm()
    script.write_text(script.read_text().replace("homelab-vfio: ", "homelab: "))
    host.run("apply", LAYERS["initramfs"])
    assert host.run("apply", decide).stdout not in (confirmed, once)


def test_a_roll_back_is_not_confirmed_while_it_runs(switched: Callable[..., Switched]) -> None:
    host = switched(awaited=True)
    gate = host.machine.state / "gate"
    os.mkfifo(gate)
    host.spoil("update-initramfs", f'read -r _ <{gate}; exec {host.machine.state}/bin/update-initramfs "$@"')
    running = subprocess.Popen(
        ["sh", str(host.state / "rollback"), str(AFTER)],
        env={**host.machine.environment(), **SHORT_WAITS},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with writer_of(gate) as writer:  # opens when the other end is, in the middle of the roll-back
        answer = host.confirm()
        writer.write("go\n")
    assert running.wait(PATIENCE) == 0
    assert answer["confirmed"] == "" and answer["rolling_back"] is True
    assert "was not confirmed within 20 s" in str(answer["rolled_back"])
    assert host.confirm()["confirmed"] == ""
    finished_by_the_next_boot(host)


def test_a_roll_back_is_neither_confirmed_nor_contradicted_until_its_restart_has_come(
    switched: Callable[..., Switched],
) -> None:
    """Everything is given back, and the boot that is to end still runs."""
    host = switched(awaited=True)
    host.elapse()
    assert host.differs() == set() and host.is_rolling()
    (host.state / "rolled-back").unlink()  # as a disk leaves it that takes no note
    answer = host.confirm()
    assert answer["confirmed"] == "" and answer["rolling_back"] is True
    assert "was not confirmed within 20 s" in str(answer["rolled_back"])
    done = host.run("apply", LAYERS["iommu"])
    assert done.returncode == 1 and "it is giving back its boot configuration now: boot " in done.stdout
    host.boot()
    assert not host.is_rolling()
    assert host.run("apply", LAYERS["iommu"]).returncode == 0


def test_nothing_is_configured_while_a_roll_back_is_about_to_restart_the_host(
    switched: Callable[..., Switched],
) -> None:
    host = switched(awaited=True)
    host.machine.set_fault("update-initramfs", "fail")
    host.elapse()
    before = host.files()
    done = host.run("apply", LAYERS["iommu"])
    assert done.returncode == 1 and "it is giving back its boot configuration now" in done.stdout
    assert host.files() == before


SWITCH_FILES = {
    "/root/var/lib/homelab/rollback",
    "/root/etc/systemd/system/homelab-rollback.timer",
    "/root/etc/systemd/system/homelab-rollback.service",
}


# -- a power cut at any command ---------------------------------------------------------------------------------
# One character for each command: both sides of a pipe count, and what one appends the other doesn't lose.
_COUNT = """
set -o functrace
trap 'read -r _n <"$COUNTER" || :; printf . >>"$COUNTER"; ((CUT < 0 || ${#_n} < CUT)) || _end' DEBUG
_end() { # itself last
  kill -KILL -- $(ps -o pid= -s "$SESSION" | grep -vwF "$BASHPID") $BASHPID
}
"""


def cut(host: Switched, at: int) -> int:
    """Runs the program and kills it, with all that it has started, at that command; says how many commands there were."""
    program = host.state / "rollback"
    text = program.read_text()
    # The shell is bash there, which can stop at each command.
    host.spoil("sh", 'exec /bin/bash "$@"')
    program.write_text("SESSION=${SESSION:-$BASHPID}\nexport SESSION" + _COUNT + text)
    counter = host.machine.state / "counter"
    counter.write_text("")
    subprocess.run(
        ["bash", str(program), str(AFTER)],
        env={**host.machine.environment(), **SHORT_WAITS, "COUNTER": str(counter), "CUT": str(at)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        timeout=PATIENCE,
    )
    host.mend("sh")
    if program.exists():
        program.write_text(text)
    return len(counter.read_text())


@pytest.mark.parametrize("scenario", ["rtx5090", "intel-zfs"])
def test_a_power_cut_at_any_command_is_made_good_by_the_next_boot(
    switched: Callable[..., Switched], tmp_path: Path, scenario: str
) -> None:
    """A sample of the commands (tests/sampling.py)."""
    host = switched(scenario, awaited=True)
    kept = tmp_path / "kept"
    shutil.copytree(host.machine.state, kept, symlinks=True)
    total = cut(host, -1)
    assert total > 300 and host.differs() == set()
    for at in sampling.sample(range(total), 2, scenario):
        shutil.rmtree(host.machine.state)
        shutil.copytree(kept, host.machine.state, symlinks=True)
        cut(host, at)
        words, restarts = set(WORDS) & set(host.boot().split()), len(host.reboots())
        if host.is_armed() and (host.state / "rollback").exists():
            host.elapse()
            assert not words or len(host.reboots()) > restarts, f"cut at command {at} of {total}: it wasn't restarted"
        if set(WORDS) & set(host.boot().split()):
            raise AssertionError(f"cut at command {at} of {total}: the words are still there")
        assert not host.is_armed(), f"cut at command {at} of {total}"
        # In the middle of disarming: what nothing starts any more goes with the next run.
        if host.differs() and host.differs() <= SWITCH_FILES:
            assert host.run("revert", LAYERS["iommu"]).returncode == 0
        assert host.differs() == set(), f"cut at command {at} of {total}"
