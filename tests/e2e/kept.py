"""A deployed stack, kept: its state, and what it left on its host and in its VMs. A later version of the program goes on with it.

``python -m tests.e2e.kept [SCENARIO…]`` keeps the present version's, in tests/e2e/kept/VERSION.json.gz and, of another host,
VERSION-SCENARIO.json.gz. What belongs to one lab alone (ports, keys, its programs) is named in the file, and filled in again for the lab that
goes on with it. To keep one more of an older version: this file, put into a checkout of that version.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engine import install
from homelab import __version__
from lab.host.contents import install_program
from lab.host.state import HostState
from tests.conftest import PROJECT
from tests.e2e.conftest import Stack, make_stack
from tests.e2e.nvidia import WHOLE, reached

FOLDER = PROJECT / "tests" / "e2e" / "kept"
# Scenario -> the stack's settings: a VM with a card; a container with NVIDIA's stack, and a VM with it, on hosts that need no reboot for it.
STACKS: dict[str, dict[str, Any]] = {
    "rtx5090": {"vms": {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}},
    "phoenix": {
        "gpus": {},
        "containers": {"ai-lab": {"ctid": 901, "gpuAssignment": "0,1", "nvidia": {"cuda": "12.8"}}},
        "iommu": {"enable": False, "passthrough": False},
    },
    "bound-by-hand": {
        "gpus": {"rtx5090": {"match": "10de:2b85"}},
        "vms": {"sandbox": {"vmid": 103, "gpus": ["rtx5090"], "nvidia": WHOLE}},
    },
}
# Where this program writes on a host; /boot is made anew from it.
WRITTEN = ("etc", "usr/local", "var/lib/homelab")
# What a boot makes anew in a VM. The rest is on its disk, and is kept.
NOT_ON_DISK = ("dev", "proc", "run", "sys", "tmp")
# A simulated program that a package has brought: it names the lab that it was made by, and another lab makes its own.
_PROGRAM = re.compile(rb'#!/bin/sh\n[^#]*/lab/host/run\.py [\w.+-]+ "\$@"\n')

#: Path -> mode and bytes of a file, and where a link leads to.
Files = dict[str, tuple[int, bytes]]
Links = dict[str, str]


def reach_guests(stack: Stack) -> None:
    """Tells the settings the way into those VMs in which there is something to do."""
    for vm in with_stack_inside(stack):
        stack.lab.wait_guest(vm["vmid"])  # which installs it
        vm.update(reached(stack.lab, vm["vmid"]))


def with_stack_inside(stack: Stack) -> list[dict[str, Any]]:
    """The settings of these VMs."""
    return [vm for vm in stack.config.get("homelab:vms", {}).values() if "nvidia" in vm]


def own_values(stack: Stack) -> dict[str | int, str | int]:
    """What is this lab's alone -> what stands for it."""
    connection, api = stack.lab.connection, stack.lab.api
    guests: dict[str | int, str | int] = {}
    for vm in with_stack_inside(stack):
        guest = stack.lab.guest(vm["vmid"])
        guests |= {
            guest["hostKey"]: f"@HOST-KEY-{vm['vmid']}@",
            guest["port"]: f"@SSH-PORT-{vm['vmid']}@",
        }
    return guests | {
        Path(connection["privateKeyFile"]).read_text(): "@PRIVATE-KEY@",
        connection["privateKeyFile"]: "@PRIVATE-KEY-FILE@",
        connection["hostKey"]: "@HOST-KEY@",
        api["tokenSecret"]: "@TOKEN-SECRET@",
        api["caFile"]: "@CA-FILE@",
        connection["port"]: "@SSH-PORT@",
        api["port"]: "@API-PORT@",
    }


def exchanged(value: Any, other: dict[Any, Any]) -> Any:
    """The value with others in the place of some, also in texts that are JSON themselves."""
    if isinstance(value, dict):
        return {key: exchanged(one, other) for key, one in value.items()}
    if isinstance(value, list):
        return [exchanged(one, other) for one in value]
    if isinstance(value, str | int) and not isinstance(value, bool) and value in other:
        return other[value]
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        try:
            inside = json.loads(value)
        except ValueError:
            return value
        return json.dumps(exchanged(inside, other), separators=(",", ":"))
    return value


def files(stack: Stack) -> Files:
    """What is on the host for this program to write."""
    return _files(stack.lab.root, _below(stack.lab.root))


def links(stack: Stack) -> Links:
    """The same for symbolic links."""
    return _links(stack.lab.root, _below(stack.lab.root))


def inside(stack: Stack) -> dict[int, tuple[Files, Links]]:
    """VM -> what is on its disk, of those in which there is something to do."""
    found = {}
    for vm in with_stack_inside(stack):
        root = tree(stack, vm["vmid"])
        there = [path for path in sorted(root.rglob("*")) if path.relative_to(root).parts[0] not in NOT_ON_DISK]
        found[vm["vmid"]] = _files(root, there), _links(root, there)
    return found


def tree(stack: Stack, vmid: int) -> Path:
    """Where the lab has a VM's files."""
    return stack.lab.state / "guests" / str(vmid) / "root"


def _below(root: Path) -> list[Path]:
    return [path for folder in WRITTEN for path in sorted((root / folder).rglob("*"))]


def _files(root: Path, paths: list[Path]) -> Files:
    return {
        str(path.relative_to(root)): (path.stat().st_mode & 0o7777, path.read_bytes())
        for path in paths
        if path.is_file() and not path.is_symlink()
    }


def _links(root: Path, paths: list[Path]) -> Links:
    return {str(path.relative_to(root)): str(path.readlink()) for path in paths if path.is_symlink()}


def exported(stack: Stack) -> dict[str, Any]:
    """The state, its secrets readable."""
    command = [
        str(stack.engine.pulumi),
        "stack",
        "export",
        "--show-secrets",
        "--stack",
        "lab",
        "--cwd",
        str(stack.project),
    ]
    done = subprocess.run(command, env=stack.environment, capture_output=True, text=True, check=True)
    state: dict[str, Any] = json.loads(done.stdout)
    return state


@dataclass(frozen=True)
class Found:
    """What is there of a host, and of VMs in which there is something to do."""

    host: tuple[Files, Links]
    guests: dict[int, tuple[Files, Links]]

    @classmethod
    def of(cls, stack: Stack) -> Self:
        """As it is now."""
        return cls((files(stack), links(stack)), inside(stack))

    def on_host(self) -> dict[str, Any]:
        """Files and links."""
        return {**self.host[0], **self.host[1]}


def keep(stack: Stack, before: Found) -> dict[str, Any]:
    """What is to be kept of a deployed stack.

    :param before: what was there before that.
    """
    state = exported(stack)
    for resource in state["deployment"]["resources"]:
        for key in ("created", "modified", "sourcePosition", "stackTrace"):
            resource.pop(key, None)
    now = Found.of(stack)
    guests = {vmid: _new(before.guests[vmid], there) for vmid, there in now.guests.items()}
    return {"state": exchanged(state, own_values(stack)), **_new(before.host, now.host), "guests": guests}


def _new(before: tuple[Files, Links], now: tuple[Files, Links]) -> dict[str, Any]:
    """Files and links that are new or changed, and which of the files are the lab's programs."""
    files = {path: found for path, found in now[0].items() if before[0].get(path) != found}
    programs = [path for path, (_, text) in files.items() if _PROGRAM.fullmatch(text)]
    return {
        "files": {
            path: [oct(mode), base64.b64encode(content).decode()]
            for path, (mode, content) in files.items()
            if path not in programs
        },
        "links": {path: target for path, target in now[1].items() if before[1].get(path) != target},
        "programs": programs,
    }


def scenario(file: Path) -> str:
    """The host on which it was kept."""
    return file.name.removesuffix(".json.gz").partition("-")[2] or "rtx5090"


def read(file: Path) -> dict[str, Any]:
    """What was kept in a file."""
    found: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    return found


def restore(stack: Stack, kept: dict[str, Any]) -> None:
    """Gives a stock host, and its VMs, what was left on the kept ones, boots them so, and imports the state."""
    lab = stack.lab
    _write(lab.root, kept)
    for vmid, guest in kept.get("guests", {}).items():
        _write(tree(stack, int(vmid)), guest)
    lab.run("update-initramfs -u -k all && update-grub")
    lab.reboot()
    names = {name: value for value, name in own_values(stack).items()}
    # As if its VMs had not been booted since.
    for resource in kept["state"]["deployment"]["resources"]:
        if resource["type"].endswith(":GuestReboot"):
            (vm,) = with_stack_inside(stack)
            lab.wait_guest(vm["vmid"])
            names[resource["outputs"]["boot_id"]] = lab.guest_boots(vm["vmid"])[-1]["boot_id"]
    file = stack.folder / "kept.json"
    file.write_text(json.dumps(exchanged(kept["state"], names)))
    command = [
        str(stack.engine.pulumi),
        "stack",
        "import",
        "--file",
        str(file),
        "--stack",
        "lab",
        "--cwd",
        str(stack.project),
    ]
    done = subprocess.run(command, env=stack.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _write(root: Path, kept: dict[str, Any]) -> None:
    for path, (mode, content) in kept["files"].items():
        _file(root / path, base64.b64decode(content), int(mode, 8))
    for path in kept.get("programs", ()):
        install_program(HostState(root.parent), f"/{path}")
    for path, target in kept["links"].items():
        link = root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)


def _file(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def main() -> None:
    """Keeps this version's."""
    for name in sys.argv[1:] or STACKS:
        with tempfile.TemporaryDirectory() as folder:
            stack = make_stack(install.ensure(), Path(folder), name, **STACKS[name])
            try:
                reach_guests(stack)
                before = Found.of(stack)
                stack.up()
                kept = keep(stack, before)
            finally:
                stack.lab.stop()
        path = FOLDER / f"{__version__}{'' if name == 'rtx5090' else f'-{name}'}.json.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(json.dumps(kept, indent=1).encode(), mtime=0))
        print(f"written: {path}, {path.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
