"""Writes docs/first-hour.md anew: what a terminal of 100 columns shows of `homelab init`, `pulumi up` and `homelab show`.

`python -m tests.e2e.first_hour`. The host is a lab's; everything else is what a person gets. A name of a machine stands for the lab's
address and ports.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyte

from engine import install
from lab import Lab
from tests.conftest import PROJECT
from tests.e2e.test_init import CONTAINERS, PASSPHRASE, PROGRAM, VMS, Person, agree, answer, log_in

PAGE = PROJECT / "docs" / "first-hour.md"
COLUMNS, LINES = 100, 50
ADDRESS = "192.168.0.202"

BEGIN = """\
# The first hour

What a terminal shows of `homelab init`, `pulumi up` and `homelab show`, on two simulated hosts. `python -m tests.e2e.first_hour` has recorded
it; the addresses are examples. Of the outputs, `result` alone is shown.

A line with a question shows the answer that was given. Nothing is done before the last of them.
"""
HOSTS = {
    "rtx5090": "## An RTX 5090 for a VM\n\nThe host has one VM, and a second card on which it shows its console.",
    "phoenix": "## Two cards for a container\n\nThe host runs NVIDIA's driver. Container 950 uses a card already, container 901 is to get both.",
}


class Terminal:
    """Shows what a program writes, as a terminal does."""

    def __init__(self) -> None:
        self._screen = pyte.HistoryScreen(COLUMNS, LINES, history=100_000)
        self._stream = pyte.Stream(self._screen)

    def write(self, text: str) -> None:
        self._stream.feed(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def lines(self) -> list[str]:
        """All lines, also those above the screen."""
        above = ["".join(line[column].data for column in range(COLUMNS)) for line in self._screen.history.top]
        return [line.rstrip() for line in (*above, *self._screen.display)]


def recorded(person: Person, scenario: str) -> list[tuple[str, list[str]]]:
    """Each command, and what it showed."""
    terminal = Terminal()
    asked = VMS[scenario] if scenario in VMS else CONTAINERS[scenario][0]
    spawned = person.init("--no-preview")
    spawned.logfile_read = terminal
    answer(spawned, *log_in(person), *asked, *agree())
    up = Terminal()
    command = [str(person.engine.pulumi), "up", "--yes", "--skip-preview", "--stack", "homelab"]
    spawned = person.terminal(*command, PULUMI_CONFIG_PASSPHRASE=PASSPHRASE)
    spawned.logfile_read = up
    answer(spawned)
    command = [sys.executable, "-m", "homelab", "show"]
    environment = person.environment | {"COLUMNS": str(COLUMNS), "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE}
    shown = subprocess.run(command, cwd=person.folder, env=environment, capture_output=True, text=True, check=True)
    return [
        (f"homelab init {ADDRESS}", terminal.lines()),
        ("pulumi up --yes --skip-preview", list(shortened(up.lines()))),
        ("homelab show", shown.stdout.splitlines()),
    ]


def shortened(lines: Sequence[str]) -> Iterator[str]:
    """Of the outputs only `result`."""
    key = ""
    for line in lines:
        if line == "Outputs:":
            key = "outputs"
        elif not line.startswith(" "):
            key = ""
        elif key and re.match(r"    \w", line):
            key = line.split(":")[0].strip()
            if key == "hosts":
                yield "    ..."
        if key in ("", "outputs", "result"):
            yield line


def as_on_a_host(lines: Sequence[str], person: Person) -> str:
    """Without what is a lab's alone: its folder, address and ports; without empty lines at both ends."""
    connection, api = person.lab.connection, person.lab.api
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    text = text.replace(str(person.folder / "home"), "~").replace(str(person.folder), "~/homelab")
    text = text.replace(connection["host"], ADDRESS)
    text = re.sub(rf"^ *port: ({connection['port']}|{api['port']})\n", "", text, flags=re.MULTILINE)
    text = re.sub(rf"(, port |:| --port | --api-port ){connection['port']}\b|(:| --api-port ){api['port']}\b", "", text)
    return re.sub(r"\n{3,}", "\n\n", text)


def record(scenario: str, engine: install.Engine) -> str:
    """The page's part about a host."""
    folder = Path(tempfile.mkdtemp())
    try:
        for name in PROGRAM:
            (folder / name).symlink_to(PROJECT / name)
        for name in ("home", "state"):
            (folder / name).mkdir()
        with Lab.start(scenario, state=folder / "lab") as lab:
            person = Person(folder, engine, lab)
            parts = [
                f"```\n$ {command}\n{as_on_a_host(lines, person)}\n```" for command, lines in recorded(person, scenario)
            ]
    finally:
        shutil.rmtree(folder)
    return "\n\n".join([HOSTS[scenario], *parts])


def main() -> None:
    engine = install.ensure(os.environ | {"PULUMI_HOME": str(install.cache_folder() / "home")})
    PAGE.write_text(
        "\n\n".join([BEGIN.rstrip(), *(record(scenario, engine) for scenario in HOSTS)]) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
