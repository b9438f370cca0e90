"""A boot on trial on a whole host: what starts it, what ends it, and that nothing keeps the host from the old boot.

A run of its program is what the timer starts; the host is the lab's, without a daemon, so that nothing really restarts.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homelab.remote import agent, scripts
from lab.machine import Machine
from lab.processes import end_left_behind
from remote_scripts.both.confirm_boot import Wanted as ConfirmBoot
from tests import sampling
from tests.boot_layers import Asked, initramfs, iommu, read_host, reboot, vfio
from tests.lab.test_real_hosts import be_no_proxmox
from tests.scripts.test_on_a_host import IOMMU, VFIO, Host, put_agent
from tests.waiting import PATIENCE

AFTER = 20
LAYERS = {
    "iommu": iommu(IOMMU, rollback_after=AFTER),
    "initramfs": initramfs(),
    "vfio": vfio(VFIO, rollback_after=AFTER),
}
LOADERS = ["rtx5090", "intel-zfs", "zfs-grub-shim"]  # GRUB; systemd-boot; GRUB by proxmox-boot-tool
WORDS = [*IOMMU.split(), VFIO]
SHORT_WAITS = {"REBOOT_SECONDS": "0", "RETRY_SECONDS": "0", "LOCK_TIMEOUT": "1"}


def confirmation(**wanted: Any) -> Asked:
    return Asked("confirm_boot", ConfirmBoot(**wanted))


class Tried(Host):
    """A host with all layers configured, in the boot on trial."""

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

    def running(self) -> list[str]:
        """The words that this boot has."""
        return (self.root / "proc/cmdline").read_text().split()

    def choices(self) -> list[str]:
        """What is chosen on each ESP, or beside the menu."""
        places = [*self.machine.state.glob("esp/*/homelab/grubenv"), *self.root.glob("boot/grub/homelab.env")]
        return [line.split("=")[1] for path in sorted(places) for line in path.read_text().splitlines() if "=" in line]

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
            self.run("apply", confirmation(told=answer["judged"]))
        return answer

    def is_rolling(self) -> bool:
        """Is its restart to be waited for?"""
        return bool(json.loads(self.run("read", read_host()).stdout)["rolling_back"])

    def differs(self) -> set[str]:
        """The files that aren't as in the stock host, but for what is told to people, and what serves both entries."""
        now = self.files()
        names = {path for path in {*now, *self.stock} if now.get(path) != self.stock.get(path)}
        return (
            {path.removeprefix(str(self.machine.state)) for path in names}
            - {
                # By these the next boot starts what ran before (tests/agent/test_guests_to_start.py), and takes them away.
                "/root/etc/systemd/system/homelab-ran.service",
                "/root/etc/systemd/system/homelab-ran.timer",
                "/root/var/lib/homelab/ran",
                "/root/var/lib/homelab/ran-program",
                "/root/var/lib/homelab/rolled-back",
                "/root/var/lib/homelab/wanted-boot",
            }
            - {path for path in self.serving()}
        )

    def serving(self) -> set[str]:
        """The initramfs and what it is made of: without the word on the command line it does nothing."""
        ours = [
            f"/root/boot/initrd.img-{kernel.name.removeprefix('vmlinuz-')}"
            for kernel in (self.root / "boot").glob("vmlinuz-*")
        ]
        on_esps = [
            str(path).removeprefix(str(self.machine.state)) for path in self.machine.state.glob("esp/**/initrd.img-*")
        ]
        places = ("scripts/init-top", "hooks")
        files = [f"/root/etc/initramfs-tools/{place}/homelab-vfio" for place in places] + [
            "/root/etc/modules-load.d/homelab-vfio.conf"
        ]
        return {
            *ours,
            *on_esps,
            *files,
            *(file.replace("/root/", "/root/var/lib/homelab/files/vfio/") for file in files),
        }


#: What was in the files of a stock host, by the folder of the one that was made of it.
_stock: dict[Path, dict[str, bytes]] = {}


@pytest.fixture(scope="session")
def kept_hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tried")


@pytest.fixture
def tried(kept_hosts: Path) -> Callable[..., Tried]:
    """Made once in a process for each scenario, and brought back to what it was then: one in a test."""

    def make(scenario: str = "rtx5090", *, awaited: bool = False) -> Tried:
        place = kept_hosts / f"{scenario}{'-awaited' * awaited}"
        kept = place.with_name(f"{place.name}-kept")
        if place not in _stock:
            host = Tried(place, scenario, awaited=awaited)
            _stock[place] = host.stock
            subprocess.run(["cp", "-a", place, kept], check=True)
            return host
        end_left_behind(place)  # such as systemd-run, which nobody waits for
        shutil.rmtree(place)
        subprocess.run(["cp", "-a", kept, place], check=True)
        host = Tried.__new__(Tried)
        host.machine, host.root, host.stock = Machine.open(place), place / "root", _stock[place]
        return host

    return make


# -- arming -----------------------------------------------------------------------------------------------------
def test_an_apply_that_writes_nothing_arms_nothing(tried: Callable[..., Tried]) -> None:
    host = tried()
    host.confirm()
    before = host.files()
    for script in LAYERS.values():
        assert scripts.answer(host.run("apply", script).stdout)["changed"] in ("no", False)
    assert host.files() == before
    assert not host.is_armed()


def test_an_apply_that_fails_leaves_no_switch_behind(tmp_path: Path) -> None:
    host = Host(tmp_path / "lab", "rtx5090")
    host.bash('chmod -x "$ROOT/etc/grub.d/41_custom"; update-grub')
    done = host.run("apply", LAYERS["iommu"])
    assert done.returncode == 1 and "GRUB's menu reads no custom.cfg" in done.stdout
    assert not list((host.root / "etc/systemd/system").rglob("homelab*"))


@pytest.mark.parametrize("scenario", LOADERS)
def test_the_trial_is_started_once_whatever_the_loader(tried: Callable[..., Tried], scenario: str) -> None:
    host = tried(scenario)
    esps = len(list((host.machine.state / "esp").iterdir()))
    assert host.choices() == ["taken"] * (esps if scenario != "intel-zfs" else 0) and host.is_armed()
    assert not set(WORDS) & set(host.boot().split())
    host.elapse()
    assert host.differs() == set() and not host.is_armed() and host.reboots() == []
    assert "is not the one on trial" in (host.state / "rolled-back").read_text()


@pytest.mark.parametrize("scenario", LOADERS)
def test_a_confirmed_boot_is_the_default_without_a_further_restart(tried: Callable[..., Tried], scenario: str) -> None:
    host = tried(scenario)
    assert host.confirm()["confirmed"] and not host.is_armed() and host.choices() == []
    words = host.boot().split()
    assert set(WORDS) < set(words) and "homelab.trial" not in words


@pytest.mark.parametrize("is_confirmed", [True, False])
@pytest.mark.parametrize("scenario", LOADERS)
def test_a_kernel_that_comes_and_one_that_goes_during_a_trial_leave_the_new_boot_or_the_old_one(
    tried: Callable[..., Tried], scenario: str, is_confirmed: bool
) -> None:
    host = tried(scenario)
    host.machine.install_kernel("6.17.13-21-pve")
    host.machine.remove_kernel((host.root / "proc/sys/kernel/osrelease").read_text().strip())
    assert not is_confirmed or host.confirm()["confirmed"]
    words = host.boot().split()
    assert (host.root / "proc/sys/kernel/osrelease").read_text() == "6.17.13-21-pve\n"
    assert (set(WORDS) < set(words)) is is_confirmed and "homelab.trial" not in words
    host.elapse()
    assert (host.state / "rolled-back").exists() is not is_confirmed and not host.is_armed() and host.choices() == []


def test_one_layer_given_back_leaves_the_switch_for_the_other(tried: Callable[..., Tried]) -> None:
    host = tried()
    host.run("revert", LAYERS["vfio"])
    host.run("revert", LAYERS["initramfs"])
    assert host.is_armed() and host.choices() == ["once"]
    host.run("revert", LAYERS["iommu"])
    assert not host.is_armed()
    assert host.differs() == set()


def test_a_manual_reboot_has_a_switch_too(tried: Callable[..., Tried]) -> None:
    host = tried()
    assert host.is_armed()
    assert "until" not in (host.state / "trial").read_text()


def test_a_reboot_that_could_not_be_ordered_is_waited_for_by_nobody(tmp_path: Path) -> None:
    """A person restarts the host then, and may take longer for the next `up` than the switch's time."""
    host = Tried(tmp_path / "lab", "rtx5090", configured=False)
    assert host.run("apply", LAYERS["iommu"]).returncode == 0
    host.spoil("systemd-run", "echo no bus; exit 1")
    done = host.run("apply", reboot(IOMMU, rollback_after=AFTER))
    assert done.returncode == 1 and "reboot it by hand" in done.stdout
    assert "until" not in (host.state / "trial").read_text()
    host.boot()
    host.elapse()
    assert (host.state / "judged").exists()


# -- what the boot loader makes of it -----------------------------------------------------------------------------
@pytest.mark.parametrize("scenario", LOADERS)
def test_a_kernel_that_panics_comes_back_with_the_old_configuration_without_userland(
    tmp_path: Path, scenario: str
) -> None:
    host = Tried(tmp_path / "lab", scenario, configured=False)
    for script in LAYERS.values():
        host.run("apply", script)
    host.machine.set_fault("panics-when", "homelab.vfio")
    assert not set(WORDS) & set(host.boot().split())
    assert "has ended before it was confirmed" in str(host.confirm()["rolled_back"])
    assert host.differs() == set()


def test_an_esp_that_grub_cannot_write_starts_no_trial(tmp_path: Path) -> None:
    host = Tried(tmp_path / "lab", "rtx5090", configured=False)
    host.run("apply", LAYERS["iommu"])
    host.machine.set_fault("grub-cannot-write", True)
    assert not {*IOMMU.split()} & {*host.boot().split()}
    assert host.choices() == ["once"] and not {*IOMMU.split()} & {*host.boot().split()}
    assert "the boot loader never started it" in str(host.confirm()["rolled_back"])
    assert host.differs() == set()


def test_a_trial_whose_kernel_is_gone_starts_the_first_entry(tmp_path: Path) -> None:
    host = Tried(tmp_path / "lab", "rtx5090", configured=False)
    host.run("apply", LAYERS["iommu"])
    newest = max((host.root / "boot").glob("vmlinuz-*"), key=lambda path: path.name.split("-")[1].split("."))
    newest.unlink()
    host.bash("update-grub")
    assert not {*IOMMU.split()} & {*host.boot().split()}


def test_a_pinned_kernel_is_the_one_that_is_tried(tmp_path: Path) -> None:
    host = Tried(tmp_path / "lab", "rtx5090", configured=False)
    kernels = sorted(path.name.removeprefix("vmlinuz-") for path in (host.root / "boot").glob("vmlinuz-*"))
    host.bash(f"proxmox-boot-tool kernel pin {kernels[0]}")
    host.run("apply", LAYERS["iommu"])
    assert f"vmlinuz-{kernels[0]}" in host.boot() and host.choices() == ["taken"]


# -- what it decides --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scenario", LOADERS)
def test_an_awaited_boot_that_nobody_confirms_is_undone(tried: Callable[..., Tried], scenario: str) -> None:
    host = tried(scenario, awaited=True)
    boot_id = (host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    host.elapse()
    assert (host.state / "rolled-back").read_text() == f"boot {boot_id} was not confirmed within 20 s of its start"
    assert host.reboots()[-3:] == [["reboot"], ["reboot", "--force"], ["reboot", "--force", "--force"]]
    # Where none of them ends the boot, the kernel does.
    assert (host.root / "proc/sysrq-trigger").read_text() == "b"
    finished_by_the_next_boot(host)


def finished_by_the_next_boot(host: Tried) -> None:
    """Whatever failed, the next boot is without our words, and the host itself takes away what was on trial."""
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


def test_a_boot_that_nobody_waits_for_any_more_is_judged(tried: Callable[..., Tried]) -> None:
    host = tried(awaited=True)
    note = host.state / "trial"
    note.write_text(re.sub(r"(?m)^until .*$", f"until {10**9}", note.read_text()))
    host.elapse()
    assert (host.state / "judged").exists()


def test_a_healthy_host_that_nobody_waits_for_stays_and_says_so(tried: Callable[..., Tried]) -> None:
    host = tried()
    host.elapse()
    said = "vmbr0 is up with 192.168.0.202, its gateway 192.168.0.1 answers, and sshd listens on port 22"
    assert (host.state / "judged").read_text().endswith(f"judged by this host itself 20 s after its start: {said}")
    assert not host.is_armed()
    assert host.reboots() == []
    assert set(WORDS) < set(host.boot().split())
    reading = json.loads(host.run("read", read_host()).stdout)
    assert reading["rolled_back"] == ""
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
def test_a_host_out_of_reach_that_nobody_waits_for_is_undone(tmp_path: Path, fault: str, said: str) -> None:
    host = Tried(tmp_path / "lab", "rtx5090", configured=False)
    for script in LAYERS.values():
        host.run("apply", script)
    host.machine.set_fault(fault, "homelab.vfio")
    host.boot()
    host.elapse()
    assert said in (host.state / "rolled-back").read_text()
    finished_by_the_next_boot(host)


def test_a_gateway_that_answers_no_ping_is_known_by_its_hardware_address(tried: Callable[..., Tried]) -> None:
    host = tried()
    host.spoil("ping", "exit 1")
    host.elapse()
    assert "its gateway 192.168.0.1 answers" in (host.state / "judged").read_text()


def test_an_owners_check_that_fails_undoes_the_boot(tried: Callable[..., Tried]) -> None:
    host = tried()
    check = host.root / "etc/homelab/healthy.d/pool"
    check.parent.mkdir(parents=True)
    check.write_text("#!/bin/sh\nexit 1\n")
    check.chmod(0o755)
    host.elapse()
    shutil.rmtree(host.root / "etc/homelab")
    assert (
        "/etc/homelab/healthy.d/pool of its owner's checks did not succeed" in (host.state / "rolled-back").read_text()
    )
    finished_by_the_next_boot(host)


@pytest.mark.parametrize("what", ["none", "a broken one", "no Python", "one that hangs"])
def test_without_an_answer_of_the_agent_a_boot_is_given_back(tried: Callable[..., Tried], what: str) -> None:
    """A restart needs nothing else; what is left is taken away once there is an agent."""
    host = tried()
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
    assert len(host.reboots()) == 3
    for _ in range(2):
        assert not set(WORDS) & set(host.boot().split())
        host.elapse()
        assert len(host.reboots()) == 3, "there is nothing to restart for"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(whole)
    if what not in ("none", "a broken one"):
        host.mend("timeout")
    host.elapse()
    assert host.differs() == set() and not host.is_armed()


def test_an_agent_that_is_whole_is_asked_where_another_stacks_is_broken(tried: Callable[..., Tried]) -> None:
    host = tried()
    other = host.root / agent.place("a-broken")[1:]
    other.parent.mkdir()
    other.write_bytes(b"half")
    host.elapse()
    assert "judged by this host itself" in (host.state / "judged").read_text() and host.reboots() == []


def test_what_can_not_be_told_is_decided_on_the_safe_side(tried: Callable[..., Tried]) -> None:
    host = tried()
    note = host.state / "trial"
    note.write_text("".join(line for line in note.read_text().splitlines(True) if not line.startswith("address")))
    host.elapse()
    assert "it is not known over which address this host is reached" in (host.state / "rolled-back").read_text()


def test_the_boot_in_which_it_was_armed_is_left_alone(tmp_path: Path) -> None:
    host = Tried(tmp_path / "lab", "rtx5090", configured=False)
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


def test_a_reboot_during_a_trial_starts_it_once_more(tried: Callable[..., Tried]) -> None:
    """Such as for the host's driver, before anybody has confirmed the boot: its configuration would be lost."""
    host = tried()
    be_no_proxmox(host.machine)
    host.machine.set_fault("reboot-ignored", True)
    assert '"reboot":"yes"' in host.run("apply", driver_reboot(" ".join(WORDS))).stdout
    assert host.choices() == ["once"]
    host.machine.clear_faults()
    assert set(WORDS) < set(host.boot().split())


def test_a_reboot_for_the_hosts_driver_leaves_a_confirmed_configuration_alone(tried: Callable[..., Tried]) -> None:
    """It boots what runs already. Nobody may confirm it in time (a laptop sleeps), and the VM's card would be gone."""
    host = tried()
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


def test_a_boot_by_another_entry_ends_the_trial(tmp_path: Path) -> None:
    """A person has chosen it, and shall not find the trial in the next boot."""
    host = Tried(tmp_path / "lab", "rtx5090", configured=False)
    host.run("apply", LAYERS["iommu"])
    host.machine.next_entry = "0"
    assert not {*IOMMU.split()} & {*host.boot().split()}
    assert "is not the one on trial" in str(host.confirm()["rolled_back"])
    assert host.differs() == set()


# -- nothing stops it -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["mv", "sync", "cp"])
def test_a_command_that_fails_does_not_stop_it(tried: Callable[..., Tried], command: str) -> None:
    host = tried(sampling.sample(LOADERS, 1, command)[0], awaited=True)
    host.spoil(command, "exit 1")
    host.elapse()
    host.mend(command)
    assert host.reboots()
    assert not set(WORDS) & set(host.boot().split())
    host.elapse()
    assert host.differs() == set() and (host.state / "rolled-back").exists()


def elapse_read_only(host: Tried, *places: str) -> str:
    """What the timer runs, with these folders on a file system that has become read-only; what it said."""
    namespace = [shutil.which("unshare") or "unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
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


READ_ONLY = """\
set -eu
for place; do "$MOUNT" --bind "$ROOT/$place" "$ROOT/$place"; "$MOUNT" -o remount,ro,bind "$ROOT/$place"; done
exec sh "$ROOT/var/lib/homelab/rollback" 20
"""


def test_a_host_that_can_write_nothing_is_restarted_once(tried: Callable[..., Tried]) -> None:
    """The default never changed: nothing need be written for it."""
    host = tried(awaited=True)
    elapse_read_only(host, "etc", "var", "boot")
    assert len(host.reboots()) == 3
    assert not set(WORDS) & set(host.boot().split())
    elapse_read_only(host, "etc", "var", "boot")
    assert len(host.reboots()) == 3, "there is nothing to restart for"
    host.elapse()
    assert host.differs() == set() and not host.is_armed()


def test_a_run_that_holds_the_lock_does_not_stop_it(tried: Callable[..., Tried]) -> None:
    host = tried(awaited=True)
    (host.root / "run/homelab").mkdir(mode=0o700, parents=True, exist_ok=True)
    with (host.root / "run/homelab/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        host.elapse()
    finished_by_the_next_boot(host)


# -- it lets the old boot be, and goes on where it was killed ------------------------------------------------------
def without_agent(host: Tried) -> None:
    (host.root / agent.place("test")[1:]).unlink()


def test_an_old_boot_whose_agent_says_nothing_is_left_alone(tried: Callable[..., Tried]) -> None:
    """It isn't the trial, and healthy: its guests run. A status that isn't 0 would start the program every 10 s."""
    host = tried()
    assert not set(WORDS) & set(host.boot().split())
    without_agent(host)
    assert host.elapse().returncode == 0
    elapse_read_only(host, "etc", "var", "boot")
    assert host.reboots() == []


@pytest.mark.parametrize("moment", ["restarting", "taken-back"])
def test_a_program_that_is_killed_before_its_restart_goes_on_with_it(tried: Callable[..., Tried], moment: str) -> None:
    """Restart=on-failure starts it again after 10 s."""
    host = tried(awaited=True)
    run = host.root / "run/homelab"
    run.mkdir(mode=0o700, exist_ok=True)
    (run / "restarting").write_text("boot x was not confirmed")
    if moment == "taken-back":
        (host.state / "trial").rename(host.state / "taken-back")
    host.elapse()
    assert (host.state / "rolled-back").read_text() == "boot x was not confirmed"
    finished_by_the_next_boot(host)


def test_what_a_power_cut_in_the_middle_of_it_leaves_goes_with_the_rest(tried: Callable[..., Tried]) -> None:
    host = tried(awaited=True)
    (host.state / "trial").rename(host.state / "taken-back")
    (host.state / ".rolled-back.homelab-tmp").write_text("half of it")
    assert not set(WORDS) & set(host.boot().split())
    host.elapse()
    assert host.differs() == set() and "is not the one on trial" in (host.state / "rolled-back").read_text()


def test_a_program_that_is_killed_after_a_confirmation_restarts_nothing(tried: Callable[..., Tried]) -> None:
    """The confirmation renamed the note first."""
    host = tried(awaited=True)
    run = host.root / "run/homelab"
    run.mkdir(mode=0o700, exist_ok=True)
    (run / "restarting").write_text("boot x was not confirmed")
    (host.state / "trial").rename(host.state / "confirmed")
    host.elapse()
    assert host.reboots() == [] and host.confirm()["confirmed"]


@pytest.mark.parametrize("command", ["mv", "cp", "sync"])
def test_a_command_that_hangs_does_not_stop_it(tried: Callable[..., Tried], command: str) -> None:
    host = tried(awaited=True)
    host.spoil(command, f"exec sleep {PATIENCE}")
    host.elapse(STEP_SECONDS="1")
    host.mend(command)
    assert host.reboots(), "the trial never ends"


# -- it is never contradicted -----------------------------------------------------------------------------------
def test_a_confirmed_boot_is_not_undone(tried: Callable[..., Tried]) -> None:
    host = tried(awaited=True)
    program = (host.state / "rollback").read_text()
    assert host.confirm()["confirmed"]
    (host.state / "rollback").parent.mkdir(exist_ok=True)
    (host.state / "rollback").write_text(program)  # the timer had just elapsed
    host.elapse()
    assert host.reboots() == []
    assert set(WORDS) < set(host.boot().split())


def test_a_boot_is_confirmed_while_another_run_is_at_work(tried: Callable[..., Tried]) -> None:
    """Such as the one that starts containers again at each boot. What is left to do the timer does, or the next run."""
    host = tried(awaited=True)
    (host.root / "run/homelab").mkdir(mode=0o700, parents=True, exist_ok=True)
    with (host.root / "run/homelab/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = host.run("apply", confirmation(lock_seconds=1))
        assert json.loads(done.stdout)["confirmed"], done.stdout
    assert (host.state / "confirmed").exists() and host.choices() == ["keep"]
    assert json.loads(host.run("read", read_host()).stdout)["pending"] == ["boot"]
    host.elapse()
    assert host.reboots() == [] and not host.is_armed() and host.choices() == []
    assert set(WORDS) < set(host.boot().split())


def test_a_boot_that_another_run_awaits_is_not_confirmed(tried: Callable[..., Tried]) -> None:
    """It was asked just before the host goes down."""
    host = tried(awaited=True)
    running = (host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    answer = json.loads(host.run("apply", confirmation(unless=running)).stdout)
    assert (answer["boot"], answer["confirmed"]) == (running, "")
    assert (host.state / "trial").exists() and host.is_armed()


@pytest.mark.parametrize("scenario", LOADERS)
def test_a_menu_that_can_not_be_made_leaves_the_confirmed_boot_and_says_so(
    tried: Callable[..., Tried], scenario: str
) -> None:
    host = tried(scenario)
    spoilt = {"intel-zfs": "umount"}.get(scenario, "grub-mkconfig")
    host.spoil(spoilt, "echo no room; exit 1") if spoilt != "umount" else spoil_entries(host)
    assert host.confirm()["confirmed"] and (host.state / "confirmed").exists()
    decide = reboot(f"{' '.join(WORDS)} mitigations=off", rollback_after=AFTER)
    done = host.run("apply", decide)
    assert done.returncode == 1 and "the boot configuration was not made after the last change" in done.stdout
    assert host.reboots() == []
    assert host.run("apply", LAYERS["iommu"]).returncode == 1
    if spoilt != "umount":
        assert set(WORDS) < set(host.boot().split()), "the choice is kept"
        host.mend(spoilt)
        assert host.run("apply", LAYERS["iommu"]).returncode == 0
        words = host.boot().split()
        assert set(WORDS) < set(words) and "homelab.trial" not in words


def spoil_entries(host: Tried) -> None:
    for path in host.machine.state.glob("esp/*/loader/entries/proxmox-*.conf"):
        path.write_text(path.read_text().replace("options", "# options"))


def test_a_boot_for_which_a_trial_was_armed_anew_is_confirmed_anew(tried: Callable[..., Tried]) -> None:
    """Pulumi runs the verification, which confirms it, where the answer of the reboot is another one."""
    host = tried()
    decide = reboot(" ".join(WORDS), rollback_after=AFTER)
    once = host.run("apply", decide).stdout
    assert '"reboot":"no"' in once and '"armed":""' not in once
    host.confirm()
    confirmed = host.run("apply", decide).stdout
    assert '"reboot":"no"' in confirmed and '"armed":""' in confirmed


def test_a_trial_is_neither_confirmed_nor_contradicted_until_its_restart_has_come(tried: Callable[..., Tried]) -> None:
    host = tried(awaited=True)
    host.elapse()
    assert host.is_rolling()
    (host.state / "rolled-back").unlink()  # as a disk leaves it that takes no note
    answer = host.confirm()
    assert answer["confirmed"] == "" and answer["rolling_back"] is True
    assert "was not confirmed within 20 s" in str(answer["rolled_back"])
    done = host.run("apply", LAYERS["iommu"])
    assert done.returncode == 1 and "it is ending a boot on trial now: boot " in done.stdout
    host.boot()
    assert not host.is_rolling()
    assert host.run("apply", LAYERS["iommu"]).returncode == 0
