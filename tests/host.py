"""What a test needs of the host that it is about: one interface for the lab, for a machine under QEMU (tests/metal), and for a node over SSH.

All but the shell itself, and how it is switched off and on, is asked by commands, which are the same everywhere: a path in them begins with
$HOMELAB_ROOT, which only a simulated host has.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from homelab.cli.pulumi import PASSWORD
from lab import Lab
from tests.conftest import PROJECT
from tests.lab.stack_kit import host_settings
from tests.waiting import wait_until

#: How long an emulated host on a busy machine may take from its power button to SSH, in seconds; and for one command.
BOOT_SECONDS = 900
COMMAND_SECONDS = 1200

# What a running system changes by itself, below the folders that are compared: its clock, random numbers, leases, logs, lists of packages, guests'
# disks; of pmxcfs what it makes up when it is read, its keys and its locks, and the lists that Proxmox VE
# writes anew when a guest is removed, its daily update's of apt, and what it had half written of a VM's when its power was cut (of a
# container's homelab writes such a file, too); what initramfs-tools notes of an image.
_CHANGES_ITSELF = """
etc/adjtime etc/apt/apt.conf.d/76pveproxy etc/resolv.conf etc/mtab etc/lvm/archive etc/lvm/backup etc/lvm/devices etc/pve/.* etc/pve/*authkey* etc/pve/priv/lock
etc/pve/nodes/*/lrm_status etc/pve/nodes/*/ssh_known_hosts etc/pve/ha etc/pve/priv/known_hosts etc/pve/jobs.cfg etc/pve/replication.cfg etc/pve/vzdump.cron
etc/pve/nodes/*/qemu-server/*.conf.tmp.*
root/.bash_history root/.cache root/.lesshst root/.ssh/known_hosts* root/.rnd
var/lib/apt var/lib/chrony var/lib/corosync var/lib/dhcp var/lib/initramfs-tools var/lib/logrotate var/lib/lxc var/lib/lxcfs var/lib/man-db
var/lib/nfs var/lib/plocate var/lib/postfix var/lib/private var/lib/pve-cluster var/lib/pve-firewall var/lib/pve-manager var/lib/rrdcached
var/lib/smartmontools var/lib/systemd var/lib/ucf var/lib/vz/dump var/lib/vz/images var/lib/vz/private var/lib/vz/template
"""
# Names, modes, owners, contents; of an initramfs the list of its files, for two of the same files differ in times. No folder's own line: that Proxmox VE
# makes one, and keeps it, is nobody's loss.
_FILES = rf"""
set -f; not=""
for one in {" ".join(_CHANGES_ITSELF.split())}; do not="$not ! -path $one ! -path $one/*"; done
where=""
for one in etc etc/pve/ boot usr/local usr/lib/systemd var/lib root; do [ ! -e "$HOMELAB_ROOT/$one" ] || where="$where $one"; done
cd "$HOMELAB_ROOT/"
find $where -xdev ! -type d ! -name 'initrd.img-*' $not -printf '%p %y %m %u:%g %l\n' 2>/dev/null | sort -u
find $where -xdev -type f ! -name 'initrd.img-*' $not -print0 2>/dev/null | sort -zu | xargs -0 sha256sum
set +f
for image in boot/initrd.img-*; do
  if [ -e "$image" ]; then echo "$image"; lsinitramfs "/$image" | sort; fi
done
"""
_DRIVERS = (
    'cd "$HOMELAB_ROOT/sys/bus/pci/devices" 2>/dev/null && for one in *; do '
    '[ ! -e "$one" ] || printf "%s %s\\n" "$one" "$(basename "$(readlink "$one/driver")")"; done'
)
# Of pmxcfs: a cluster's configuration, without its corosync; and back, as Proxmox VE's manual separates a node (pvecm(1)). A lock that a job of
# pvescheduler's has then would stay for two minutes.
_NO_QUORUM = """\
systemctl stop pvescheduler; printf 'totem {\\n  config_version: 1\\n}\\nnodelist {\\n}\\n' >"$HOMELAB_ROOT/etc/pve/corosync.conf"
systemctl restart pve-cluster"""
_QUORUM = """\
exec 9>/run/homelab-node-tier-quorum; flock 9; cd "$HOMELAB_ROOT/etc"; [ ! -e corosync/corosync.conf ] || {
  systemctl stop pve-cluster; pmxcfs -l 9>&-; rm -f pve/corosync.conf corosync/corosync.conf; kill $(cat /run/pve-cluster.pid)
  while pidof -q pmxcfs; do sleep 0.1; done; systemctl start pve-cluster pvescheduler 9>&-
}"""
# A guest has a file with its process, and a container of Proxmox VE a socket.
_GUESTS_ON = r"""
for one in "$HOMELAB_ROOT"/run/qemu-server/*.pid "$HOMELAB_ROOT"/run/lxc/*.pid; do
  [ ! -e "$one" ] || [ ! -e "$HOMELAB_ROOT/proc/$(cat "$one")" ] || basename "$one" .pid
done
sed -n 's|.*@/var/lib/lxc/\([0-9]*\)/command$|\1|p' "$HOMELAB_ROOT/proc/net/unix" 2>/dev/null
"""
# What tidies up after a VM that was started again at once would keep its lock for half a minute, to no purpose.
_SETTLE = r"""
wait() { while pgrep -f "$1" >/dev/null; do sleep 0.1; done; }
wait '^task UPID:[^ ]*:(qm|vz|st)|^/usr/bin/perl .*/(qm|pct) ([^c]|create)'
for one in /run/qemu-server/*.pid; do
  [ ! -e "$one" ] || ! kill -0 "$(cat "$one")" || pkill -f "^/usr/bin/perl .*/qm cleanup $(basename "$one" .pid) "
done
wait '^/usr/bin/perl .*/(qm|pct) '
"""
_CARDS = r"""
cd "$HOMELAB_ROOT/sys/bus/pci/devices" 2>/dev/null || exit 0
for one in *; do
  case $(cat "$one/class" 2>/dev/null) in 0x03*) ;; *) continue ;; esac
  [ "$(cat "$one/boot_vga" 2>/dev/null)" != 1 ] || continue
  printf '%s %s:%s\n' "$one" "$(cut -c 3-6 "$one/vendor")" "$(cut -c 3-6 "$one/device")"
done
"""
#: A root file system in $root with busybox alone.
BUSYBOX = r"""
mkdir -p $root/bin $root/sbin $root/dev $root/proc $root/sys $root/etc $root/tmp
cp "$(command -v busybox)" $root/bin/busybox
for library in $(ldd $root/bin/busybox 2>/dev/null | grep -o '/[^ ]*'); do cp -L --parents $library $root; done
for applet in $(busybox --list); do [ $applet = busybox ] || ln -sf busybox $root/bin/$applet; done
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >$root/etc/passwd
printf 'root:x:0:\nvideo:x:44:\nrender:x:104:\n' >$root/etc/group
"""


class HostError(Exception):
    """The host didn't do what was asked; with what it has said last."""


class Host(ABC):
    """A Proxmox VE host, or what stands for one."""

    #: How many times slower than most it is; and the id of the card that tests give away, `first`, or empty: none.
    slow, given = 1, "first"
    #: Root's, as `homelab init` takes it from its environment; {}: it isn't known.
    password: Mapping[str, str] = {}
    #: The command by which its power is cut: what isn't on its disk by then is lost.
    cut = "echo b >/proc/sysrq-trigger"

    def quorum(self, *, lost: bool) -> str:
        """The command by which it loses its cluster's quorum, or has it again."""
        return _NO_QUORUM if lost else _QUORUM

    def press(self, vmid: int) -> str:
        """The command by which a VM's power button is pressed and Proxmox VE has no task of it: to Proxmox VE it goes off by itself."""
        return f"pvesh create /nodes/$(hostname)/qemu/{vmid}/monitor --command system_powerdown"

    def make_deaf(self, vmid: int) -> None:
        """From its next start on, a VM of tests/e2e/roads.py follows the second press alone, which isn't its shutdown's."""
        args = f"sed -n 's/-append quiet/-append deaf=1/; s/^args: //p' /etc/pve/qemu-server/{vmid}.conf"
        self.run(f'qm set {vmid} --args "$({args})"')

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """How the program reaches it: what the settings of a host need."""

    @abstractmethod
    def run(self, command: str, *, input: str = "", check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        """What the command, run by root's shell, prints.

        :raises HostError: it fails (with ``check``), or takes too long.
        """

    def read(self, path: str) -> str:
        """A file; empty: there is none."""
        return self.run(f'cat "$HOMELAB_ROOT{path}" 2>/dev/null', check=False)

    def succeeds(self, command: str) -> bool:
        """Whether its exit status is 0."""
        return self.run(f"{{ {command}\n}} >/dev/null 2>&1 && echo yes", check=False) == "yes\n"

    # -- power -------------------------------------------------------------------------------------------------------------
    def boot_id(self) -> str:
        """Empty: nobody answers."""
        try:
            return self.run('cat "$HOMELAB_ROOT/proc/sys/kernel/random/boot_id"', check=False, seconds=15).strip()
        except HostError:
            return ""

    def boots(self) -> int:
        """How often it was booted since it was made, or as far as its journal goes back; 0: it keeps none."""
        return len(self.run("journalctl --list-boots --no-pager --quiet 2>/dev/null", check=False).splitlines())

    def reboot(self) -> None:
        """As a person would, on the host; returns when it is back."""
        before = self.boot_id()
        self.run("systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot")
        self.wait_for_boot(before)

    def wait_for_boot(self, before: str, seconds: float = BOOT_SECONDS) -> None:
        """Until it answers with another boot id than ``before``."""
        self._wait(lambda boot_id: boot_id not in ("", before), seconds, "it has not come back from its reboot")

    def _wait(self, enough: Callable[[str], bool], seconds: float, otherwise: str) -> None:
        # Nothing outside tells when its sshd listens: QEMU takes connections for it from the start.
        deadline = time.monotonic() + seconds * self.slow
        while not enough(self.boot_id()):
            if time.monotonic() > deadline:
                raise self.error(f"{otherwise} after {seconds * self.slow} s")
            time.sleep(0.3)

    def last_words(self) -> str:
        """What it has said last, for a run that has hung. A simulated one has nothing to add: its logs are kept in its folder."""
        return ""

    def error(self, text: str) -> HostError:
        """With its last words."""
        return HostError(f"{text}\n{self.last_words()}")

    # -- what it holds -----------------------------------------------------------------------------------------------------
    def drivers(self) -> dict[str, str]:
        """PCI address -> driver, as its sysfs has it."""
        return dict(line.split(" ") for line in self.run(_DRIVERS, check=False).splitlines())

    def files(self) -> list[str]:
        """All below /etc, /boot, /usr/local, /var/lib, but for what a running system changes by itself: names, modes, owners, contents."""
        return self.run("bash -s", input=_FILES).splitlines()

    def card(self) -> tuple[str, str] | None:
        """The address and id of the card that is given away, which isn't its screen; None: it has none."""
        cards = [(line.split()[0], line.split()[1]) for line in self.run(_CARDS, check=False).splitlines()]
        return next((one for one in cards if self.given in ("first", one[1])), None)

    # -- guests ------------------------------------------------------------------------------------------------------------
    def guests_on(self) -> set[int]:
        """The ids of the VMs and containers that run."""
        return {int(one) for one in self.run(_GUESTS_ON, check=False).split()}

    def settle(self) -> None:
        """Until no task of guests runs, nor a program that begins some, or tidies up after one."""
        self.run(_SETTLE)

    def tasks(self, since: Collection[str] = ()) -> list[str]:
        """The tasks that are known, in order, by their UPIDs, but for those of a mark, which is what this has answered before."""
        found = self.run("find \"$HOMELAB_ROOT/var/log/pve/tasks\" -name 'UPID:*' -printf '%f\\n'").split()
        return sorted(set(found) - set(since), key=lambda upid: (upid.split(":")[4], upid.split(":")[3]))


class LabHost(Host):
    """A simulated one."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.password = lab, {PASSWORD: lab.connection["password"]}
        self.cut = f"setsid -f {self._from_outside('lab.Lab.open(state).power_cycle()')}"

    @property
    def settings(self) -> dict[str, Any]:
        return host_settings(self.lab)

    def run(self, command: str, *, input: str = "", check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        return self.lab.run(command, stdin=input, check=check, timeout=seconds).stdout

    def quorum(self, *, lost: bool) -> str:
        return self._from_outside(f"lab.Lab.open(state).fault('no-quorum', {lost or None})")

    def press(self, vmid: int) -> str:
        return self._from_outside(f"lab.control.request(state, 'poweroff', guest={vmid})")

    def make_deaf(self, vmid: int) -> None:
        self.lab.fault("guest-ignores-shutdown", vmid)

    def _from_outside(self, done: str) -> str:
        """The command by which something is done to the lab itself, whose folder is `state`."""
        program = f"import lab, lab.control, pathlib; state = pathlib.Path({str(self.lab.state)!r}); {done}"
        return f"env -u LAB_STATE PYTHONPATH={PROJECT} {shlex.join([sys.executable, '-c', program])}"

    def settle(self) -> None:
        wait_until(lambda: not self.read("/var/log/pve/tasks/active"))

    def boots(self) -> int:
        return len(self.lab.boots())

    def reboot(self) -> None:
        self.lab.reboot()


class SshHost(Host):
    """One that OpenSSH's client reaches.

    :param key: the private key; None: whichever the client takes.
    :param known_hosts: a file with the host's key, and no other.
    """

    def __init__(self, address: str, port: int, key: Path | None, known_hosts: Path, user: str = "root") -> None:
        self.address, self.port, self.user = address, port, user
        self.key, self.known_hosts = key, known_hosts

    @property
    def settings(self) -> dict[str, Any]:
        line = self.known_hosts.read_text().split(" ", 1)[1].strip()
        login = {"privateKeyFile": str(self.key)} if self.key else {"agent": True}
        return {"address": self.address, "ssh": {"port": self.port, "hostKey": line, **login}}

    def ssh(self, *options: str) -> list[str]:
        """The command line of OpenSSH's client, to which a command is added."""
        given = {
            "BatchMode": "yes", "UserKnownHostsFile": self.known_hosts, "IdentitiesOnly": "yes" if self.key else "no", "ConnectTimeout": 5 * self.slow,
            "StrictHostKeyChecking": "yes", "GlobalKnownHostsFile": "/dev/null",
            # A host that goes down may keep the connection open and say nothing any more.
            "ServerAliveInterval": 5, "ServerAliveCountMax": 6, "LogLevel": "ERROR",
        }  # fmt: skip
        arguments = [part for name, value in given.items() for part in ("-o", f"{name}={value}")]
        identity = ["-i", str(self.key)] if self.key else []
        return [
            "ssh",
            "-F",
            "none",
            *identity,
            "-p",
            str(self.port),
            *arguments,
            *options,
            f"{self.user}@{self.address}",
        ]

    def run(self, command: str, *, input: str = "", check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        try:
            done = subprocess.run(
                [*self.ssh(), f"export LC_ALL=C; {command}"],
                input=input,
                capture_output=True,
                text=True,
                timeout=seconds * self.slow,
            )
        except subprocess.TimeoutExpired:
            raise self.error(f"`{command}` took longer than {seconds * self.slow} s") from None
        if check and done.returncode:
            raise self.error(f"`{command}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def wait_for_ssh(self) -> None:
        """Until it answers."""
        self._wait(bool, BOOT_SECONDS, "it can't be reached")
