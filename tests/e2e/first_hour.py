"""Writes docs/first-hour.md and docs/first-hour.svg anew: what a terminal of 100 columns shows of `homelab init`, `pulumi up` and `homelab show`, and the
picture that `homelab show` draws of the first host before its `pulumi up`.

`python -m tests.e2e.first_hour`. The host is a lab's; everything else is what a person gets. A name of a machine stands for the lab's
address and ports.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from engine import install
from lab import Lab
from tests.e2e import recording
from tests.e2e.person import PASSPHRASE, Person, agree, answer, log_in
from tests.e2e.terminal import Terminal
from tests.e2e.test_init import CONTAINERS, VMS

COLUMNS = 100
PICTURE, PICTURED = recording.PAGE.with_suffix(".svg"), "rtx5090"

BEGIN = """\
# The first hour

This page shows what a terminal prints for `homelab init`, `pulumi up` and `homelab show`, on two simulated hosts. It is a recording, made by
`python -m tests.e2e.first_hour`; the addresses are examples.

If you have never used Pulumi: it keeps a list of *resources*, which are things that it has made, and that it can change and remove. `pulumi up` makes
them what the settings say, and notes what it did in the *stack* (here: `homelab`). `pulumi destroy` undoes it.

- `homelab init` asks questions. A line that begins with `?` shows a question and its answer. Nothing is done before the last answer; before that
  question, `homelab init` shows everything that it is about to do.
- `pulumi up` shows a row for each resource: its type, its name, and what was done with it in how many seconds. An indented row is a part of the one
  above it. *Diagnostics* contains the messages of the steps, *Outputs* their results; only `result` is shown here. Without `--yes --skip-preview`,
  `pulumi up` first shows what it would do, and asks.
- `homelab show` only reads.
"""
HOSTS = {
    "rtx5090": """## An RTX 5090 for a VM

<!-- rtx5090 -->
The host has one VM, and a second card on which it shows its console. `pulumi up` restarts the host once, and says why before
it does.""",
    "phoenix": """## Two cards for a container

<!-- phoenix -->
The host runs NVIDIA's driver. Container 950 uses both cards already, and container 901 is to get them, too. The host needs no
restart; the container gets its devices, a restart, and CUDA.""",
}


def recorded(person: Person, scenario: str) -> list[tuple[str, list[str]]]:
    """Each command, and what it showed."""
    terminal = Terminal(COLUMNS)
    asked = VMS[scenario] if scenario in VMS else CONTAINERS[scenario][0]
    spawned = person.init("--no-preview")
    spawned.logfile_read = terminal
    answer(spawned, *log_in(person.lab), *asked, *agree())
    if scenario == PICTURED:
        person.show("--svg", str(person.folder / PICTURE.name))
        drawn = (person.folder / PICTURE.name).read_text(encoding="utf-8")
        PICTURE.write_text(
            recording.as_on_a_host(drawn.splitlines(), person.folder, person.lab) + "\n", encoding="utf-8"
        )
    up = Terminal(COLUMNS)
    command = [str(person.engine.pulumi), "up", "--yes", "--skip-preview", "--stack", "homelab"]
    spawned = person.terminal(*command, PULUMI_CONFIG_PASSPHRASE=PASSPHRASE)
    spawned.logfile_read = up
    answer(spawned)
    return [
        (f"homelab init {recording.ADDRESS}", terminal.lines()),
        ("pulumi up --yes --skip-preview", list(recording.shortened(up.lines()))),
        ("homelab show", person.show()),
    ]


def record(scenario: str, engine: install.Engine) -> str:
    """The page's part about a host."""
    folder = Path(tempfile.mkdtemp())
    try:
        with Lab.start(scenario, state=folder / "lab") as lab:
            person = Person.of_a_new_machine(folder, engine, lab, os.environ)
            parts = [
                f"```\n$ {command}\n{recording.as_on_a_host(lines, person.folder, person.lab)}\n```"
                for command, lines in recorded(person, scenario)
            ]
    finally:
        shutil.rmtree(folder)
    return "\n\n".join([HOSTS[scenario], *parts])


def main() -> None:
    engine = install.ensure(os.environ | {"PULUMI_HOME": str(install.cache_folder() / "home")})
    recording.PAGE.write_text(
        "\n\n".join([BEGIN.rstrip(), *(record(scenario, engine) for scenario in HOSTS)]) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
