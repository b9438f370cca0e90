"""What roads have that can be run on a node, too (tests/node): small guests that are made for them, and a stop point in the agent."""

from __future__ import annotations

import json

from tests.host import BUSYBOX, Host

#: The guests that roads make have these ids.
IDS = range(9000, 9100)
VM, CT, NEW_VM, NEW_CT = 9000, 9001, 9002, 9003
TEMPLATE = "homelab-node-tier_1_amd64.tar.gz"
MADE = "/opt/homelab-node-tier"

# A VM: this node's own kernel, and busybox, which waits for the power button. A container: busybox alone, whose first program goes when it is told to.
# A simulated host's guests follow by themselves: of them it has the template's name alone.
_GUESTS = rf"""
set -e
cache="$HOMELAB_ROOT/var/lib/vz/template/cache"
mkdir -p "$cache"
if [ -n "$HOMELAB_ROOT" ]; then touch "$cache/{TEMPLATE}"; exit; fi
[ -e {MADE}/initrd-2 ] || (
root={MADE}/root
rm -rf {MADE}; mkdir -p $root/modules
{BUSYBOX}
printf '#!/bin/sh\ntrap "exit 0" 2 15 30\nwhile :; do sleep 1 & wait $!; done\n' >$root/sbin/init
chmod 755 $root/sbin/init
tar -C $root -czf "$cache/{TEMPLATE}" --exclude=./modules .
for module in button evdev; do
  file=$(modinfo -n $module 2>/dev/null || true)
  case $file in
    *.xz) xz -dc $file >$root/modules/$module.ko ;;
    *.zst) zstd -dcq $file >$root/modules/$module.ko ;;
    *.ko) cp $file $root/modules ;;
  esac
done
cat >$root/init <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in /modules/*.ko; do insmod $module; done
sleep 1
# A press is four events.
ignored=$(sed -n 's/.*deaf=\([0-9]*\).*/\1/p' /proc/cmdline)
for input in /dev/input/event*; do (dd if=$input of=/dev/null bs=24 count=$((4 * ${{ignored:-0}} + 1)) && poweroff -f) & done
echo up >/dev/ttyS0
while :; do sleep 3600; done
INIT
chmod 755 $root/init
(cd $root && find . | cpio -o -H newc --quiet | gzip) >{MADE}/initrd-2
) >&2
[ -e /dev/kvm ] && kvm=1 || kvm=0
echo "--kvm $kvm --args '-kernel /boot/vmlinuz-$(uname -r) -initrd {MADE}/initrd-2 -append quiet -serial file:{MADE}/console-ID'"
"""


def make_guests(host: Host, *wanted: int) -> str:
    """A VM, a container, or both, as their owner has made them, running; the options by which a VM of the number ID starts."""
    told = host.run("bash -s", input=_GUESTS).strip()
    options = told.replace("-ID", f"-{VM}")
    if VM in wanted:
        host.run(
            f"qm create {VM} --name vm --machine q35 --cores 1 --memory 512 --ostype l26 --cpu x86-64-v2 {options} && "
            # Without a disk, its line `boot` is another one from the second writing on.
            f"qm set {VM} --name vm && qm start {VM}"
        )
    if CT in wanted:
        host.run(
            f"pct create {CT} local:vztmpl/{TEMPLATE} --ostype unmanaged --arch amd64 --hostname ct --unprivileged 1 --memory 64 "
            f"--rootfs {rootfs(host)} && pct start {CT}"
        )
    settle(host)
    return told


def settle(host: Host) -> None:
    """Until no task runs, and a VM that runs hears its power button."""
    host.settle()
    for vmid in host.guests_on() & {VM, NEW_VM}:
        host.run(f'[ -n "$HOMELAB_ROOT" ] || until grep -q up {MADE}/console-{vmid}; do sleep 0.1; done')


def remove_guests(host: Host, ids: str = "*") -> None:
    """All that are there, or those whose ids are of this form, which is the shell's."""
    for program, folder in (("qm", "qemu-server"), ("pct", "lxc")):
        host.run(
            f'for file in "$HOMELAB_ROOT"/etc/pve/{folder}/{ids}.conf; do [ -e "$file" ] || continue; id=$(basename "$file" .conf); '
            f"{program} unlock $id; {program} stop $id; {program} destroy $id; done >/dev/null 2>&1; true"
        )


def rootfs(host: Host) -> str:
    """A container's disk on the first storage that takes one; a folder's needs no size."""
    asked = host.run("pvesh get /nodes/localhost/storage --content rootdir --output-format json")
    name, kind = min((one["storage"], one["type"]) for one in json.loads(asked))
    return f"{name}:{0 if kind == 'dir' else 1}"


def conf(host: Host, guest: int) -> str:
    """Of a VM or a container."""
    return host.read(f"/etc/pve/{'lxc' if guest in (CT, NEW_CT) else 'qemu-server'}/{guest}.conf")


#: In `pve.api`, whose requests are where a run can be met: before and after each but those by which it follows a task, for most of the time.
_EXCHANGE = "def exchange(system: System, text: bytes) -> bytes:"
_STOPS = """\
def _stop(text: bytes, left: list[int] = [0]) -> None:
    import os, subprocess
    if b"/tasks/UPID" in text or b"%2Ftasks%2FUPID" in text:
        return
    left[0] += 1
    root = os.environ.get("HOMELAB_ROOT", "")
    with open(root + "/run/homelab-node-tier", "w") as file:
        file.write(str(left[0]))
    if left[0] == {number}:
        asked = dict(os.environ, ASKED=text.partition(b"\\r\\n")[0].decode())
        subprocess.run(["sh", "-c", {command!r}], env=asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if {killed}:
            os.kill(os.getpid(), 9)


def exchange(system: System, text: bytes) -> bytes:
    _stop(text)
    answer = _exchange(system, text)
    _stop(text)
    return answer


def _exchange(system: System, text: bytes) -> bytes:"""


def stop(number: int = 0, command: str = ":", *, killed: bool = False) -> tuple[str, str, str]:
    """A stop point in the agent, for `asked_of`: at which of its requests, what somebody does there by a command ($ASKED is the request's first line), and
    whether the run is killed then.
    """
    return "pve.api", _EXCHANGE, _STOPS.format(number=number, command=command, killed=killed)
