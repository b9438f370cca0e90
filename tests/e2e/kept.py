"""A deployed stack, kept: its state, and what it left on its host. A later version of the program goes on with it.

``python -m tests.e2e.kept`` keeps the present version's, in tests/e2e/kept/VERSION.json.gz and, of another host, VERSION-SCENARIO.json.gz. What
belongs to one lab alone (ports, keys) is named in the file, and filled in again for the lab that goes on with it.
"""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine import install
from homelab import __version__
from lab import Lab
from tests.conftest import PROJECT
from tests.e2e.conftest import Stack, make_stack

FOLDER = PROJECT / "tests" / "e2e" / "kept"
# Scenario -> the stack's settings: a VM with a card; a container with NVIDIA's stack, on a host that needs no reboot for it.
STACKS: dict[str, dict[str, Any]] = {
    "rtx5090": {"vms": {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}},
    "phoenix": {
        "gpus": {},
        "containers": {"ai-lab": {"ctid": 901, "gpuAssignment": "0,1", "nvidia": {"cuda": "12.8"}}},
        "iommu": {"enable": False, "passthrough": False},
    },
}
# Where this program writes; /boot is made anew from it.
WRITTEN = ("etc", "usr/local", "var/lib/homelab")


def own_values(lab: Lab) -> dict[str | int, str | int]:
    """What is this lab's alone -> what stands for it."""
    connection, api = lab.connection, lab.api
    return {
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


def files(lab: Lab) -> dict[str, tuple[int, bytes]]:
    """Path -> mode and bytes, of what is there for this program to write."""
    found = {}
    for folder in WRITTEN:
        for path in sorted((lab.root / folder).rglob("*")):
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(lab.root))] = (path.stat().st_mode & 0o7777, path.read_bytes())
    return found


def links(lab: Lab) -> dict[str, str]:
    """The same for symbolic links."""
    every = (path for folder in WRITTEN for path in sorted((lab.root / folder).rglob("*")))
    return {str(path.relative_to(lab.root)): str(path.readlink()) for path in every if path.is_symlink()}


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


def keep(stack: Stack, before: tuple[dict[str, Any], dict[str, str]]) -> dict[str, Any]:
    """What is to be kept of a deployed stack.

    :param before: files and links of its host before that.
    """
    state = exported(stack)
    for resource in state["deployment"]["resources"]:
        for key in ("created", "modified", "sourcePosition", "stackTrace"):
            resource.pop(key, None)
    now, linked = files(stack.lab), links(stack.lab)
    return {
        "state": exchanged(state, own_values(stack.lab)),
        "files": {
            path: [oct(mode), base64.b64encode(content).decode()]
            for path, (mode, content) in now.items()
            if before[0].get(path) != (mode, content)
        },
        "links": {path: target for path, target in linked.items() if before[1].get(path) != target},
    }


def scenario(file: Path) -> str:
    """The host on which it was kept."""
    return file.name.removesuffix(".json.gz").partition("-")[2] or "rtx5090"


def read(file: Path) -> dict[str, Any]:
    """What was kept in a file."""
    found: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    return found


def restore(stack: Stack, kept: dict[str, Any]) -> None:
    """Gives a stock host what was left on the kept one, boots it so, and imports the state."""
    lab = stack.lab
    for path, (mode, content) in kept["files"].items():
        file = lab.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(content))
        file.chmod(int(mode, 8))
    for path, target in kept["links"].items():
        link = lab.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    lab.run("update-initramfs -u -k all && update-grub")
    lab.reboot()
    names = {name: value for value, name in own_values(lab).items()}
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


def main() -> None:
    """Keeps this version's."""
    for name, settings in STACKS.items():
        with tempfile.TemporaryDirectory() as folder:
            stack = make_stack(install.ensure(), Path(folder), name, **settings)
            try:
                before = files(stack.lab), links(stack.lab)
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
