"""What this version leaves on hosts and in states, kept for all later commits and versions: `python -m tests.e2e.released` makes it, once for each
version.

One file, VERSION.tar.xz, with a folder for each of `KEPT`: below `root/` what its first `up` has changed on the host, but for what is made of the
rest; `gone`, a line for each file that isn't there any more; and `state.json`, the stack's exported state. A folder in it has the same of a later moment,
as changes since the first `up`. What each lab has of its own (keys, its port) is a word like `@sshPort@` in the states.

Up to 2.1.0 it was a file for each, VERSION-NAME.tar.gz, without the agent. 2.1.0.tar.xz is of commit 9f9d0291. That of 1.0.0 is there to be refused.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homelab import __version__
from lab import Lab
from lab.client import SnapshotEntry
from lab.engine import install
from tests.e2e.conftest import Stack, stack_of

FOLDER = Path(__file__).parent
#: What a host has in these folders: a snapshot of them.
Snapshot = dict[str, SnapshotEntry]
_TASKS, _TRIAL = "var/log/pve/tasks", "var/lib/homelab/trial"
_FOLDERS = ("boot", "etc", "usr/local", "var/lib/homelab", "var/lib/vz/snippets", _TASKS)
# Made of the rest when it is brought back.
_MADE = re.compile(r"boot/(initrd\.img-|grub/grub\.cfg$)")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A stack of which is kept what it leaves."""

    scenario: str
    """Of the lab."""
    settings: Mapping[str, Any]
    """The rest of the stack's."""
    before: str = ":"
    """What the host's owner does before the first `up`."""
    later: Mapping[str, Callable[[Stack], None]] = field(default_factory=dict)
    """A later moment's name -> what leads there from the first `up`."""


def cut_off_at_its_restart(stack: Stack) -> None:
    """An `up` that is killed while its host restarts into a boot on trial: neither of them comes back."""
    stack.host.update(TRIED)
    stack.lab.fault("never-comes-back")
    boots = len(stack.lab.boots())
    process = stack.start("up", "--yes", "--skip-preview")
    stack.lab.wait_settled(boots=boots + 1)
    stack.kill(process)


#: What `cut_off_at_its_restart` changes in the settings of the host.
TRIED = {"iommu": {"passthrough": False}}
KEPT: dict[str, Kept] = {
    "rtx5090": Kept(scenario="rtx5090", settings={"vms": {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}}),
    "phoenix": Kept(
        scenario="phoenix",
        settings={
            "gpus": {"big": {"match": "10de:2b85", "use": "lxc"}},
            "containers": {"phoenix": {"ctid": 901, "gpuAssignment": "0,1"}},
            "iommu": {"enable": False, "passthrough": False},
        },
    ),
    # The VM takes the card when it is started. At the moment `trial`, container 901 is owed a start, and the next boot is on trial.
    "shared": Kept(
        scenario="phoenix",
        settings={
            "gpus": {"big": {"match": "10de:2b85", "use": "shared"}},
            "vms": {"sandbox": {"vmid": 103, "gpus": ["big"]}},
            "containers": {"phoenix": {"ctid": 901, "gpus": ["big"]}},
            "nvidia": {"driver": "580", "onDestroy": "purge"},
            # The boot on trial waits for as long as it takes to look at it.
            "timeouts": {"connect": 10, "reboot": 60, "rollback": 600},
        },
        before="qm set 103 --onboot 0; pct set 901 --onboot 0; qm stop 103",
        later={"trial": cut_off_at_its_restart},
    ),
}


def _own(lab: Lab) -> dict[str, str]:
    """Word -> what this lab has in its place."""
    ssh = lab.connection
    return {
        "@key@": Path(ssh["privateKeyFile"]).read_text(encoding="utf-8"),
        "@keyFile@": ssh["privateKeyFile"],
        "@hostKey@": ssh["hostKey"],
        "@sshPort@": str(ssh["port"]),
    }


def _quoted(text: str, times: int) -> str:
    """As it stands in a text in JSON that is itself a text in JSON, so many times."""
    for _ in range(times):
        text = json.dumps(text)[1:-1]
    return text


def in_words(text: str, lab: Lab) -> str:
    """A text with a word for each of what this lab has of its own."""
    for word, own in _own(lab).items():
        for times in (3, 2, 1):
            text = text.replace(_quoted(own, times), f"{word}{times}") if "\n" in own else text
        text = re.sub(rf"(?<![\w.]){re.escape(own)}(?!\w)", word, text)
    return text


def in_place(text: str, lab: Lab) -> str:
    """The text with what this lab has, for each word."""
    for word, own in _own(lab).items():
        for times in (1, 2, 3):
            text = text.replace(f"{word}{times}", _quoted(own, times)) if "\n" in own else text
        text = text.replace(word, own)
    return text


def keep(stack: Stack, before: Snapshot, archive: tarfile.TarFile, folder: str) -> Snapshot:
    """Write what has been made since a snapshot into a folder of an archive, and take another snapshot."""
    lab, state = stack.lab, stack.folder / "exported.json"
    assert stack.run("stack", "export", "--show-secrets", "--file", str(state)).code == 0
    made = lab.snapshot(*_FOLDERS)
    texts = {
        "state.json": in_words(state.read_text(encoding="utf-8"), lab),
        "gone": "".join(f"{name}\n" for name in sorted(before.keys() - made.keys())),
    }
    for name, text in texts.items():
        member = tarfile.TarInfo(f"{folder}/{name}")
        member.size = len(text.encode())
        archive.addfile(member, io.BytesIO(text.encode()))
    for name in sorted(made):
        if (made[name] != before.get(name) or name.startswith(_TASKS)) and not _MADE.match(name):
            path = lab.state / name if name.startswith("esp") else lab.root / name
            archive.add(path, f"{folder}/root/{name}", recursive=False)
    return made


def bring_back(stack: Stack, path: Path, *folders: str) -> None:
    """Put it on a stock host, and into a new stack; then the host is started, as after an update of its kernel and a power cut.

    :param path: the archive.
    :param folders: in it, such as `shared`, and `shared/trial` for that moment of it; none: of one that holds nothing else.
    """
    lab = stack.lab
    with tarfile.open(path) as archive:
        texts = [_unpack(lab, archive, folder) for folder in folders or (".",)]
    _as_long_ago(lab.root / _TRIAL)
    lab.run("update-initramfs -u -k all; update-grub")
    lab.fault("power-cut")
    lab.power_cycle()
    lab.fault("power-cut", None)
    state = stack.folder / "imported.json"
    assert stack.run("stack", "export", "--file", str(state)).code == 0
    own = json.loads(state.read_text(encoding="utf-8"))["deployment"]
    # What is secret in it is there in plain text, and becomes this stack's.
    exported = json.loads(in_place(texts[-1], lab))
    exported["deployment"]["secrets_providers"] = own["secrets_providers"]
    state.write_text(json.dumps(exported), encoding="utf-8")
    done = stack.run("stack", "import", "--file", str(state))
    assert done.code == 0, done.output


def _unpack(lab: Lab, archive: tarfile.TarFile, folder: str) -> str:
    """What a folder of the archive has, on a host that has what the one before has; the stack's state."""
    members = {os.path.relpath(member.name, folder): member for member in archive.getmembers()}
    state, gone = (archive.extractfile(members[name]).read().decode() for name in ("state.json", "gone"))  # type: ignore[union-attr]
    files = {name.removeprefix("root/"): member for name, member in members.items() if name.startswith("root/")}
    # What this lab's tasks were so far is no part of a host whose log of them is kept.
    if any(name.startswith(_TASKS) for name in files):
        shutil.rmtree(lab.root / _TASKS)
    for name, member in files.items():
        where = lab.state if name.startswith("esp") else lab.root
        archive.extract(member.replace(name=name), where, filter="fully_trusted")
    for name in gone.splitlines():
        (lab.root / name).unlink()
    return state


def _as_long_ago(note: Path) -> None:
    """The note of a boot on trial says until when an `up` waits for it: that lies as far ahead as when it was written."""
    if not note.exists():
        return
    written = int(note.stat().st_mtime)
    text = re.sub(
        r"(?<=^until )\d+", lambda until: str(int(time.time()) + int(until[0]) - written), note.read_text(), flags=re.M
    )
    note.write_text(text)


def main() -> None:
    """Make this version's file."""
    engine = install.ensure({**os.environ, "PULUMI_HOME": str(install.cache_folder() / "home")})
    packed, path = io.BytesIO(), FOLDER / f"{__version__}.tar.xz"
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in KEPT:
            _make(name, engine, archive)
    path.write_bytes(lzma.compress(packed.getvalue(), preset=9))
    print(f"{path.name}: {path.stat().st_size} bytes")


def _make(name: str, engine: install.Engine, archive: tarfile.TarFile) -> None:
    kept, folder = KEPT[name], Path(tempfile.mkdtemp(prefix="released-"))
    lab = Lab.start(kept.scenario, state=folder / "lab")
    try:
        stack = stack_of(lab, engine, folder, kept.scenario, **kept.settings)
        lab.run(kept.before)
        stock = lab.snapshot(*_FOLDERS)
        stack.up()
        lab.wait_idle()
        first = keep(stack, stock, archive, name)
        for moment, lead_there in kept.later.items():
            lead_there(stack)
            keep(stack, first, archive, f"{name}/{moment}")
    finally:
        lab.stop()
        shutil.rmtree(folder)
