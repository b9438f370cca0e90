"""Writes the recordings anew (recording.PAGES): what a terminal of 100 columns shows of `homelab init`, `pulumi up` and their like. What stands
between them stays.

`python -m tests.e2e.first_hour [HOST…]`. The host is a lab's; everything else is what a person gets. A name of a machine stands for the
lab's address and port.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab import Lab
from lab.engine import install
from tests.e2e import history, recording
from tests.e2e.person import Person, agree
from tests.e2e.test_init import CONTAINERS, VMS

#: Scenario -> files that are as before at its end.
FILES = {
    "rtx5090": "/etc/default/grub /etc/initramfs-tools/modules /etc/pve/qemu-server/103.conf",
    "history": history.FILES,
}
Shown = tuple[str, list[str]]
_BLOCK = re.compile(r"^```\n\$ .*?^```$", re.MULTILINE | re.DOTALL)


def recorded(person: Person, scenario: str) -> Iterator[Shown]:
    """Each command, and what it showed."""
    asked = {**VMS, **{name: talk for name, (talk, *_) in CONTAINERS.items()}, "history": history.CONVERSATION}[
        scenario
    ]
    options = CONTAINERS[scenario][2] if scenario in CONTAINERS else ()
    yield f"homelab init {recording.ADDRESS}", person.init([*asked, *agree()], *options)[1]
    if scenario in CONTAINERS:
        return
    files = FILES[scenario]
    yield f"ssh root@pve sha256sum {files}", history.checksums(person.lab, files)
    up = list(recording.shortened(person.at_a_terminal("up").lines()))
    yield "pulumi up --yes --skip-preview", list(recording.without_rows(up)) if scenario == "history" else up
    yield "homelab show", person.show()
    yield (
        "pulumi destroy --yes --skip-preview",
        list(recording.without_rows(person.at_a_terminal("destroy").lines())),
    )
    yield f"ssh root@pve sha256sum {files}", history.checksums(person.lab, files)


def record(scenario: str, engine: install.Engine) -> str:
    """The page about a host."""
    folder = Path(tempfile.mkdtemp())
    try:
        host = str(history.scenario(folder)) if scenario == "history" else scenario
        with Lab.start(host, state=folder / "lab") as lab:
            if scenario == "history":
                history.apply(lab)
            person = Person.of_a_new_machine(folder, engine, lab, os.environ)
            blocks = [
                f"```\n$ {command}\n{recording.as_on_a_host(lines, person.folder, person.lab)}\n```"
                for command, lines in recorded(person, scenario)
            ]
    finally:
        shutil.rmtree(folder)
    first, *texts = _BLOCK.split(recording.PAGES[scenario].read_text(encoding="utf-8"))
    return first + "".join(block + text for block, text in zip(blocks, texts, strict=True))


def main() -> None:
    engine = install.ensure(os.environ | {"PULUMI_HOME": str(install.cache_folder() / "home")})
    for scenario in sys.argv[1:] or ("rtx5090", "phoenix", "history"):
        recording.PAGES[scenario].write_text(record(scenario, engine), encoding="utf-8")
    page = recording.PAGES["rtx5090"].read_text(encoding="utf-8")
    recording.PICTURE.write_text(recording.picture(page), encoding="utf-8")


if __name__ == "__main__":
    main()
