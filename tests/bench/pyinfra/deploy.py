"""The host job for pyinfra: every function of the card on vfio-pci from the next boot on, and the running kernel verified.

`--data restart=yes`: on the first run, between the files and the verification. Parent folders are a stock host's, so none is looked for.
"""

import time

from paramiko import SSHException
from pyinfra.api.exceptions import DeployError
from pyinfra.api.operation import OperationMeta
from pyinfra.context import host
from pyinfra.facts.server import Command
from pyinfra.operations import files, python, server
from pyinfra.operations.util import any_changed

INITRAMFS = (
    "/etc/initramfs-tools/hooks/homelab-vfio",
    "/etc/initramfs-tools/scripts/init-top/homelab-vfio",
)
BOOT = {
    "/etc/default/grub.d/zz-homelab-iommu.cfg": "644",
    "/etc/default/grub.d/zz-homelab-vfio.cfg": "644",
    "/etc/grub.d/12_homelab": "755",
}
MODULES = "/etc/modules-load.d/homelab-vfio.conf"

root = host.data.root


def put(path: str, mode: str) -> OperationMeta:
    return files.put(
        name=path, src=f"{host.data.files}{path}", dest=f"{root}{path}", mode=mode, create_remote_dir=False
    )


def verify() -> None:
    """One command for all that is read: each is a round trip."""
    functions = " ".join(host.data.functions)
    lines = host.get_fact(
        Command,
        f"cat {root}/proc/cmdline; cd {root}/sys/bus/pci/devices; for function in {functions}; do "
        'read -r vendor <"$function/vendor"; read -r device <"$function/device"; '
        'echo "$function ${vendor#0x}:${device#0x} $(basename "$(readlink "$function/driver")")"; done',
    ).splitlines()
    missing = [word for word in host.data.words if word not in lines[0].split()]
    wanted = [f"{function} {identity} vfio-pci" for function, identity in host.data.functions.items()]
    if missing or lines[1:] != wanted:
        raise DeployError(f"the running kernel lacks {missing}; its functions: {lines[1:]}")


def restart() -> None:
    """pyinfra's own `server.reboot` waits for fixed times, and asks for an uptime, which here is this machine's."""
    before = boot_id()
    said_by("reboot")
    deadline = time.monotonic() + 300
    while boot_id() in ("", before):
        if time.monotonic() > deadline:
            raise DeployError("the host didn't come back")
        time.sleep(0.1)
    verify()


def boot_id() -> str:
    """Empty: the host doesn't answer."""
    host.disconnect()
    host.connect(show_errors=False)
    return said_by(f"cat {root}/proc/sys/kernel/random/boot_id") if host.connected else ""


def said_by(command: str) -> str:
    """Empty also where the host goes down meanwhile, which cuts the connection."""
    try:
        done, output = host.run_shell_command(command)
    except (EOFError, OSError, SSHException):
        return ""
    return output.stdout.strip() if done else ""


initramfs = [put(path, "755") for path in INITRAMFS]
put(MODULES, "644")
server.shell(name="the initramfs of every kernel", commands="update-initramfs -u -k all", _if=any_changed(*initramfs))
boot = [put(path, mode) for path, mode in BOOT.items()]
server.shell(name="GRUB's configuration", commands="update-grub", _if=any_changed(*boot))
if host.data.get("restart") == "yes":
    python.call(name="restart", function=restart)
else:
    verify()
