"""What this version leaves on hosts and in states, kept for all later commits and versions: `python -m tests.e2e.released` makes it, once for each
version.

A file for each of `SCENARIOS`, VERSION-SCENARIO.tar.gz: below `root/` what its first `up` has changed on the host, but for the agent, which each version
puts there itself, and for what is made of the rest; `gone`, a line for each file that isn't there any more; and `state.json`, the stack's exported state. What each lab has of its own (keys, its port) is a word like `@sshPort@` in all of it.
That of 1.0.0 is there to be refused.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from homelab import __version__
from lab import Lab
from lab.engine import install
from tests.e2e.conftest import Stack, stack_of

FOLDER = Path(__file__).parent
#: A scenario of the lab -> the rest of the stack's settings.
SCENARIOS: dict[str, dict[str, Any]] = {
    "rtx5090": {"vms": {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}},
    "phoenix": {
        "gpus": {"big": {"match": "10de:2b85", "use": "lxc"}},
        "containers": {"phoenix": {"ctid": 901, "gpuAssignment": "0,1"}},
        "iommu": {"enable": False, "passthrough": False},
    },
}
_CHANGED = ("etc", "usr/local", "var/lib/homelab")


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


def keep(stack: Stack, stock: dict[str, Any], path: Path) -> None:
    """Write what a first `up` has made.

    Args:
        stock: the host before it, of `Lab.snapshot(*_CHANGED)`.
    """
    lab, state = stack.lab, stack.folder / "exported.json"
    assert stack.run("stack", "export", "--show-secrets", "--file", str(state)).code == 0
    made = lab.snapshot(*_CHANGED)
    changed = [
        name
        for name, entry in sorted(made.items())
        if stock.get(name) != entry and not name.startswith("esp") and not name.endswith("/agent.pyz")
    ]
    texts = {
        "state.json": in_words(state.read_text(encoding="utf-8"), lab),
        "gone": "".join(f"{name}\n" for name in sorted(stock.keys() - made.keys())),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in texts.items():
            one = tarfile.TarInfo(name)
            one.size = len(text.encode())
            archive.addfile(one, io.BytesIO(text.encode()))
        for name in changed:
            archive.add(lab.root / name, f"root/{name}", recursive=False)
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


def bring_back(stack: Stack, path: Path) -> None:
    """Put it on a stock host, and into a new stack; then the host restarts, as after an update of its kernel."""
    lab = stack.lab
    with tarfile.open(path) as archive:
        texts = {name: archive.extractfile(name).read().decode() for name in ("state.json", "gone")}  # type: ignore[union-attr]
        for one in archive.getmembers():
            if one.name.startswith("root/"):
                one.name = one.name.removeprefix("root/")
                archive.extract(one, lab.root, filter="fully_trusted")
    for name in texts["gone"].splitlines():
        (lab.root / name).unlink()
    lab.run("update-initramfs -u -k all; update-grub")
    lab.reboot()
    state = stack.folder / "imported.json"
    assert stack.run("stack", "export", "--file", str(state)).code == 0
    own = json.loads(state.read_text(encoding="utf-8"))["deployment"]
    # What is secret in it is there in plain text, and becomes this stack's.
    exported = json.loads(in_place(texts["state.json"], lab))
    exported["deployment"]["secrets_providers"] = own["secrets_providers"]
    state.write_text(json.dumps(exported), encoding="utf-8")
    done = stack.run("stack", "import", "--file", str(state))
    assert done.code == 0, done.output


def main() -> None:
    """Make this version's files."""
    engine = install.ensure({**os.environ, "PULUMI_HOME": str(install.cache_folder() / "home")})
    for scenario, settings in SCENARIOS.items():
        folder = Path(tempfile.mkdtemp(prefix="released-"))
        lab = Lab.start(scenario, state=folder / "lab")
        try:
            stack = stack_of(lab, engine, folder, scenario, **settings)
            stock = lab.snapshot(*_CHANGED)
            stack.up()
            lab.wait_idle()
            path = FOLDER / f"{__version__}-{scenario}.tar.gz"
            keep(stack, stock, path)
            print(f"{path.name}: {path.stat().st_size} bytes")
        finally:
            lab.stop()
            shutil.rmtree(folder)
