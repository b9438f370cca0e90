"""A host whose card waits for a VM, on a folder: qm is a function that keeps configurations and plays the VM's console."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from remote_scripts.tools import disk
from remote_scripts.tools.done import Done
from tests.agent.kit import Host

GPU, AUDIO = "0000:01:00.0", "0000:01:00.1"
FUNCTIONS = {GPU: "10de:2b85", AUDIO: "10de:22e8"}
KERNEL = "6.8.12-9-pve"
CONFIGURATIONS = "/etc/pve/qemu-server"

# What a q35 VM with the card says; QEMU's own bridge is among it.
CONSOLE = f"""\
[    0.000000] Linux version {KERNEL}
homelab-passthrough BEGIN
homelab-passthrough 0000:00:00.0 8086:29c0 060000
homelab-passthrough 0000:00:1c.0 1b36:000c 060400 0:4096:0x0000000000040200
homelab-passthrough 0000:01:00.0 10de:2b85 030000 0:67108864:0x0000000000040200 1:34359738368:0x000000000014220c 5:128:0x0000000000040101
homelab-passthrough 0000:01:00.1 10de:22e8 040300 0:16384:0x0000000000040200
homelab-passthrough END 4
"""


class Qm:
    """Proxmox VE's qm on a host that is a folder. `said`: what was asked of it; `runs`: VMs that run; `console`: what the VM says,
    None: nothing, and it runs on; `fails`: what a verb says in the place of its work.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.said: list[str] = []
        self.runs = {"103"}
        self.console: str | None = CONSOLE
        self.fails: dict[str, str] = {}
        self.after: dict[str, Callable[[], None]] = {}

    @property
    def verbs(self) -> list[str]:
        return [line.split()[0] for line in self.said]

    def __call__(self, arguments: Sequence[str], _stdin: bytes) -> Done:
        verb, vm = arguments[:2]
        self.said.append(" ".join(arguments))
        if verb in self.fails:
            return Done(255, self.fails[verb].encode())
        conf = self.host.root / f"{CONFIGURATIONS[1:]}/{vm}.conf"
        if verb == "status":
            return Done(0, b"status: running" if vm in self.runs else b"status: stopped")
        if verb == "create":
            if conf.exists():
                return Done(255, f"unable to create VM {vm} - VM {vm} already exists on node 'pve'\n".encode())
            pairs = zip(arguments[2::2], arguments[3::2], strict=True)
            text = "".join(f"{name.removeprefix('--')}: {value}\n" for name, value in pairs)
            new = conf.with_name(f"{conf.name}.tmp.1")  # a qm that is killed leaves it
            try:
                disk.Disk().make(new, text.encode(), 0o640)
            except OSError as error:
                new.unlink(missing_ok=True)
                return Done(255, f"{error.strerror}\n".encode())
            disk.rename(new, conf)
            disk.flush(conf.parent)
        elif verb == "start":
            self.runs.add(vm)
            if self.console is not None:
                serial = re.findall(r"^args: .* -serial file:(\S+)", conf.read_text(), re.MULTILINE)[0]
                (self.host.root / serial[1:]).write_text(self.console)
        elif verb == "stop":
            self.runs.discard(vm)
        else:
            disk.remove(conf)
            disk.flush(conf.parent)
        self.after.get(verb, lambda: None)()
        return Done(0, b"")


def stock(host: Host) -> None:
    """Both functions on vfio-pci, and VM 103 that runs without a card."""
    resources = {
        GPU: "0x00000000f4000000 0x00000000f7ffffff 0x0000000000040200\n"
        "0x0000006000000000 0x00000067ffffffff 0x000000000014220c\n"
        + "0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 3
        + "0x000000000000f000 0x000000000000f07f 0x0000000000040101\n"
        + "0x00000000f8000000 0x00000000f807ffff 0x0000000000046200\n",
        AUDIO: "0x00000000f8080000 0x00000000f8083fff 0x0000000000040200\n",
    }
    for address, ids in FUNCTIONS.items():
        host.function(address, "0x030000", ids, driver="vfio-pci", resource=resources[address])
    host.write("/proc/sys/kernel/osrelease", f"{KERNEL}\n")
    host.write(f"/boot/vmlinuz-{KERNEL}", "kernel")
    host.write(f"{CONFIGURATIONS}/103.conf", "name: Sandbox\nmemory: 2048\n")
    (host.root / "etc/pve/local").symlink_to("nodes/pve")
    host.programs["pvesh"] = lambda _arguments, _stdin: '"104"\n'
