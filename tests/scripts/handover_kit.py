"""A host that is a folder, whose kernel answers what the handover's own steps write: for sweeps that stop the program before each of its commands.

The stand-ins of test_handover.py do a whole step at once. Here `homelab-handover` itself runs in the unit that it is started in, and each value that
it writes into sysfs is a moment of its own: what is left there is what is left where everything dies at once, such as in a power cut.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.scripts import cut_kit
from tests.scripts.conftest import Folder
from tests.scripts.test_handover import AUDIO, COMMANDS, GPU, OTHER, drivers, is_with_the_host, program, state

#: The value that a step writes, as a kernel takes it. A file `die-at` holds at which write of the next steps the unit is killed.
KERNEL = f"""\
{cut_kit.STOP_FUNCTION}
write_value() {{
  local bus=$ROOT/sys/bus/pci device=$ROOT/sys/bus/pci/devices/$1 left
  stop write
  [[ ! -e $ROOT/refuses || $2 != *"$(<"$ROOT/refuses")"* ]] || return 1
  if [[ -e $ROOT/die-at ]]; then
    left=$(<"$ROOT/die-at")
    if ((left == 1)); then
      rm "$ROOT/die-at"
      kill -9 $BASHPID $$
    fi
    printf '%s\\n' "$((left - 1))" >"$ROOT/die-at"
  fi
  case $2 in
    */driver_override) printf '%s\\n' "$1" >"$2" ;;
    */unbind)
      rm "$device/driver"
      [[ ! -d $ROOT/proc/driver/nvidia/gpus/$1 ]] || mv "$ROOT/proc/driver/nvidia/gpus/$1" "$ROOT/kept/"
      ;;
    */drivers/vfio-pci/bind) [[ $(<"$device/driver_override") == vfio-pci ]] && ln -s ../../../../bus/pci/drivers/vfio-pci "$device/driver" ;;
    */drivers/nvidia/bind)
      [[ -e $ROOT/proc/driver/nvidia/version && $(<"$device/driver_override") != vfio-pci ]] && nvidia_takes "$1"
      ;;
    */drivers_probe)
      if [[ $(<"$device/driver_override") == vfio-pci ]]; then
        ln -s ../../../../bus/pci/drivers/vfio-pci "$device/driver"
      elif [[ $1 == {AUDIO} ]]; then
        ln -s ../../../../bus/pci/drivers/snd_hda_intel "$device/driver"
      fi
      ;;
  esac
}}
nvidia_takes() {{
  ln -s ../../../../bus/pci/drivers/nvidia "$ROOT/sys/bus/pci/devices/$1/driver"
  mv "$ROOT/kept/$1" "$ROOT/proc/driver/nvidia/gpus/"
}}
"""
_WRITE = 'write_value() { { printf \'%s\\n\' "$1" >"$2"; } 2>/dev/null; }\n'
_SYSTEMD_RUN = """\
echo "$*" >>"$ROOT/asked"
while [[ $1 == -* ]]; do [[ $1 != -p ]] || shift; shift; done
case $1 in
  pct) exec "$@" ;;
  rmmod)
    [[ ! -e $ROOT/in-use || $2 != "$(<"$ROOT/in-use")" ]] || { echo "rmmod: ERROR: Module $2 is in use"; exit 1; }
    rm -rf "$ROOT/sys/module/$2"
    sed -i "/ ${2//_/-}\\$/d" "$ROOT/proc/devices"
    [[ $2 == nvidia ]] || exit 0
    rm -f "$ROOT/sys/bus/pci/devices/{gpu}/driver"
    mv "$ROOT/proc/driver/nvidia" "$ROOT/kept/nvidia"
    ;;
  */homelab-handover) [[ $2 == reconcile ]] || exec bash {program} "${@:2}" ;;
esac
"""
# A module that brings devices gets the highest major that is free (fs/char_dev.c), vfio's of those the first time.
_MODPROBE = f"""\
[[ -d $ROOT/sys/module/${{1//-/_}} ]] || mkdir -p "$ROOT/sys/module/${{1//-/_}}"
devices=$'\\n'$(<"$ROOT/proc/devices")$'\\n' name=
case $1 in nvidia[-_]uvm*) name=nvidia-uvm ;; vfio*) name=vfio ;; esac
if [[ -n $name && $devices != *" $name"$'\\n'* ]]; then
  number=508
  while [[ $devices == *$'\\n'"$number "* ]]; do number=$((number - 1)); done
  sed -i "1a $number $name" "$ROOT/proc/devices"
fi
[[ $1 == nvidia && -d $ROOT/kept/nvidia ]] || exit 0
[[ $devices == *$'\\n'"195 nvidia"$'\\n'* ]] || sed -i "1a 195 nvidia" "$ROOT/proc/devices"
mv "$ROOT/kept/nvidia" "$ROOT/proc/driver/nvidia"
device=$ROOT/sys/bus/pci/devices/{GPU}
[[ -e $device/driver || $(<"$device/driver_override") == vfio-pci ]] || ln -s ../../../../bus/pci/drivers/nvidia "$device/driver"
"""
#: Proxmox VE's, where the VM is on or off as the file says.
_QM = 'echo "status: $(<"$ROOT/vm103")"'


#: A call that is to fail: the file `fails` has the command, and a text that is among its words.
_FAILS = """\
while read -r who what; do
  [[ $who != {name} || "$*" != *"$what"* ]] || exit 9
done <"$ROOT/fails"
"""


def with_a_stat_that_can_fail(host: Folder) -> None:
    """Where it is to: it is called often, and a shell before it takes as long again."""
    host.command("stat", _FAILS.format(name="stat") + 'PATH=/usr/bin:/bin exec stat "$@"')


def with_a_kernel(host: Folder, *, only: bool = False, pve: str = "9") -> Folder:
    """The host of test_handover.py, with steps that run. `only`: the driver has no other card, so that its modules go."""
    text = program()
    assert _WRITE in text
    file = host.commands.parent / "program.sh"
    file.write_text(text.replace(_WRITE, KERNEL).replace("set -- \n", "", 1))
    host.write("/mig", "[N/A]\n")
    host.write("/fails", "\n")
    commands = {
        **COMMANDS,
        "systemd-run": _SYSTEMD_RUN.replace("{gpu}", GPU).replace("{program}", str(file)),
        "modprobe": _MODPROBE,
        "qm": _QM,
        "nvidia-smi": 'case "$*" in *mig.mode*) echo "$(<"$ROOT/mig")"; exit ;; esac\n' + COMMANDS["nvidia-smi"],
    }
    for name in ("modprobe", "nvidia-smi", "pct", "systemctl"):
        host.command(name, _FAILS.format(name=name) + commands[name])
    for name in ("systemd-run", "qm"):
        host.command(name, commands[name])
    cut_kit.flushing(host)
    host.write("/vm103", "stopped\n")
    host.write("/kept/.keep", "")
    host.write("/run/lock/qemu-server/lock-103.conf", "")
    for name in ("etc", "boot", "usr", "var", "esp"):
        (host.root / name).mkdir(exist_ok=True)
    for name in ("nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm"):
        (host.root / "sys/module" / name).mkdir(parents=True, exist_ok=True)
    if only:
        (host.root / "sys/bus/pci/devices" / OTHER / "driver").unlink()
    if pve == "8":
        host.write("/etc/pve/qemu-server/103.conf", "name: gaming\nhostpci0: 0000:01:00,pcie=1\n")
    return host


def at_home(host: Folder, *, only: bool = False) -> bool:
    """The card, its containers, the driver's settings as at first; and its modules."""
    if only:
        # What is compared is its own; the other one has no driver here.
        link = host.root / "sys/bus/pci/devices" / OTHER / "driver"
        link.symlink_to("../../../../bus/pci/drivers/nvidia")
        try:
            return is_with_the_host(host) and (host.root / "proc/driver/nvidia/version").exists()
        finally:
            link.unlink()
    return is_with_the_host(host)


def with_the_vm(host: Folder) -> bool:
    return drivers(host)[:2] == ["vfio-pci"] * 2 and (state(host), host.read("/ct950")) == ("VM", "stopped\n")


def two_users(host: Folder) -> bool:
    """Does a container run with a card that isn't its driver's?"""
    return drivers(host)[0] != "nvidia" and host.read("/ct950") == "running\n"


@dataclass(frozen=True)
class Left:
    """What is left where everything dies before one command. `where`: the function that it is in."""

    number: int
    where: str
    noted: str
    folder: Path

    def back(self, host: Folder) -> None:
        """The folder as it was then."""
        shutil.rmtree(host.root)
        shutil.copytree(self.folder, host.root, symlinks=True)

    def __str__(self) -> str:
        return f"before command {self.number}, in {self.where}, noted {self.noted or 'nothing'}"


def sweep(host: Folder, store: Path, *words: str) -> tuple[list[Left], int, list[cut_kit.Tree]]:
    """Everything that a kill at any command of a run leaves, each state once; how many commands there were; and what a power cut leaves on the disk.

    In none of them has the card two users.
    """
    store.mkdir()
    disk = cut_kit.Disk(host.root)
    found: list[Left] = []
    on_disk: dict[str, cut_kit.Tree] = {}
    seen: set[str] = set()
    lasted = print_of_all = ""
    contents: cut_kit.Contents = {}
    with cut_kit.Changes(host.root, [""]) as changes:
        started, number = cut_kit.start(host, "-", program(*words), store / "output"), 0
        for event in started.events:
            number += 1
            if not changes.any() and number > 1 and not event.startswith("sync"):
                started.go()
                continue
            lines = list(everything(host.root, contents))
            print_of_all = "\n".join(lines)
            if print_of_all not in seen:
                seen.add(print_of_all)
                where = (event.split()[2:] or ["a step"])[0]
                left = Left(number, where, state(host), store / str(number))
                assert not two_users(host), left
                shutil.copytree(host.root, left.folder, symlinks=True)
                found.append(left)
            if event.startswith("sync"):
                disk.synced(event.split()[1:])
            lasting = "\n".join(line for line in lines if line.startswith("var/"))
            if event.startswith("sync") or lasting != lasted:
                lasted = lasting
                disk.forget_gone()
                now = cut_kit.tree(host.root, contents)
                for as_now in (False, True):
                    files = disk.after_a_cut(now, names_as_now=as_now)
                    on_disk.setdefault(repr(files), files)
            started.go()
    assert started.process.wait() == 0, (store / "output").read_text()
    return found, number, list(on_disk.values())


def everything(root: Path, contents: cut_kit.Contents | None = None) -> Iterator[str]:
    """A line for each file that the folder holds, but for what a run says, and its temporary files.

    :param contents: what was read before, of files that haven't changed.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    if name != "run/homelab":
                        folders.append(f"{name}/")
                elif entry.name in ("log", "asked"):
                    continue
                elif entry.is_symlink():
                    yield f"{name} {Path(entry.path).readlink().as_posix()!r}"
                else:
                    content = cut_kit.content_of(entry.path, entry.stat(follow_symlinks=False), contents)
                    # When it was isn't told apart.
                    if b"since=" in content:
                        content = b"\n".join(line for line in content.splitlines() if not line.startswith(b"since="))
                    yield f"{name} {content!r}"
