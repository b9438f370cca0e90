"""From nothing but an address and a password to a working card: `homelab init` in a real terminal, then the real `pulumi up`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml

from engine import install, stacks
from lab import Lab
from tests import quick_python
from tests.conftest import PROJECT
from tests.e2e import recording, terminal
from tests.e2e.terminal import Terminal
from tests.waiting import PATIENCE

PASSPHRASE = "correct horse"
# The project, as a person has cloned it; its settings are the test's own.
PROGRAM = ("Pulumi.yaml", "__main__.py", "homelab", "components", "remote_scripts", "provider", ".venv")
ENTER, UP, DOWN, SPACE = "\r", "\x1b[A", "\x1b[B", " "


@dataclass
class Person:
    """Somebody at a terminal of 100 columns, on a machine where nothing is set up."""

    folder: Path
    engine: install.Engine
    lab: Lab

    @property
    def environment(self) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if name not in ("SSH_AUTH_SOCK", "NO_COLOR")}
        return self.engine.environment(environ) | {
            "HOME": str(self.folder / "home"),
            "TERM": "xterm-256color",
            "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody answers where the cursor is
            "PULUMI_BACKEND_URL": stacks.backend_url(self.folder / "state"),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PYTHONPATH": str(quick_python.FOLDER),
            "PIP_ONCE": str(install.cache_folder() / "pip-list"),
        }

    def init(self, *arguments: str) -> pexpect.spawn[str]:
        """`homelab init` with the lab's address; its ports are a lab's peculiarity."""
        connection = self.lab.connection
        where = [connection["host"], "--port", str(connection["port"]), "--api-port", str(self.lab.api["port"])]
        return self.terminal(sys.executable, "-m", "homelab", "init", *where, *arguments)

    def terminal(self, program: str, *arguments: str, **environment: str) -> pexpect.spawn[str]:
        """A program in a terminal of 100 columns."""
        return pexpect.spawn(
            program,
            list(arguments),
            cwd=str(self.folder),
            env=self.environment | environment,
            dimensions=(50, 100),
            encoding="utf-8",
            timeout=PATIENCE,
        )

    def up_at_a_terminal(self) -> Terminal:
        """The real `pulumi up`, with its display, in a terminal of 100 columns."""
        command = [str(self.engine.pulumi), "up", "--yes", "--skip-preview", "--stack", "homelab"]
        environment = self.environment | {"PULUMI_CONFIG_PASSPHRASE": PASSPHRASE}
        return terminal.run(command, 100, environment, str(self.folder), PATIENCE)

    def show(self) -> list[str]:
        """What `homelab show` draws at the terminal."""
        command = [sys.executable, "-m", "homelab", "show"]
        environment = self.environment | {"COLUMNS": "100", "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    def up(self) -> str:
        """The real `pulumi up`."""
        command = [str(self.engine.pulumi), "up", "--yes", "--skip-preview", "--stack", "homelab", "--non-interactive"]
        environment = self.environment | {"PULUMI_CONFIG_PASSPHRASE": PASSPHRASE}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def at_a_terminal(engine: install.Engine, tmp_path: Path) -> Iterator[Callable[[str], Person]]:
    labs: list[Lab] = []

    def person(scenario: str) -> Person:
        for name in PROGRAM:
            (tmp_path / name).symlink_to(PROJECT / name)
        for name in ("home", "state"):
            (tmp_path / name).mkdir()
        labs.append(Lab.start(scenario, state=tmp_path / "lab"))
        return Person(tmp_path, engine, labs[-1])

    yield person
    for lab in labs:
        lab.stop()


def answer(terminal: pexpect.spawn[str], *conversation: tuple[str, str]) -> str:
    """Each question awaited, and answered; all that was shown."""
    shown = ""
    for question, keys in conversation:
        terminal.expect_exact(question)
        shown += f"{terminal.before}{question}"
        terminal.send(keys)
    terminal.expect(pexpect.EOF, timeout=PATIENCE)
    shown += str(terminal.before)
    terminal.close()
    assert terminal.exitstatus == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def log_in(person: Person) -> list[tuple[str, str]]:
    return [
        ("Is it the same?", f"y{ENTER}"),
        ("Password of root", f"{person.lab.api['password']}{ENTER}"),
        ("Put your public key onto the host", f"y{ENTER}"),
    ]


def agree() -> list[tuple[str, str]]:
    return [
        ("Passphrase for the stack's secrets", f"{PASSPHRASE}{ENTER}"),
        ("The same once more", f"{PASSPHRASE}{ENTER}"),
        ("Do all of this?", f"y{ENTER}"),
    ]


# Where one VM could have the card, it is preselected; and nobody has the host's screen.
VMS = {
    "rtx5090": [
        ("What is rtx5090", ENTER),
        ("What is ", ENTER),
        ("Install NVIDIA's driver in VM 103", ENTER),
    ],  # Proxmox VE 9
    "wtr-max": [("What is rtx5060-ti", ENTER), ("What is ", ENTER), ("Install NVIDIA's driver in VM 103", ENTER)],  # 8
}


@pytest.mark.parametrize("scenario", VMS)
def test_a_card_for_a_vm(at_a_terminal: Callable[[str], Person], scenario: str) -> None:
    person = at_a_terminal(scenario)
    preview = scenario == "rtx5090"
    spawned, screen = person.init(*([] if preview else ["--no-preview"])), Terminal(100)
    spawned.logfile_read = screen
    shown = answer(spawned, *log_in(person), *VMS[scenario], *agree())
    assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in shown
    assert "pveum role add Homelab" in shown and f"hostpci0: mapping={VMS[scenario][0][0][8:]},pcie=1" in shown
    assert "Next: pulumi up --stack homelab" in shown
    # The preview at the end was Pulumi's own.
    assert bool(re.search(r"\+ \d+ to create", shown)) == preview
    assert person.lab.api["password"] not in shown and PASSPHRASE not in shown
    if preview:
        person.lab.machine.set_fault("hang-seconds", 7)  # a host that takes longer to start
        display = person.up_at_a_terminal()
        assert ("homelab:vm:Change", "sandbox-change") in terminal.readable(display)
        said = terminal.said_meanwhile(display, "homelab:host:BootCheck")
        recording.hold_init(scenario, screen.lines(), person.folder, person.lab)
        recording.hold_up(scenario, display.lines())
        recording.hold_show(scenario, person.show(), person.folder, person.lab)
        assert [one for one in said if re.search(r"creating.* waiting for the host: \d+ s$", one)], said
    else:
        person.up()
    assert "hostpci0: mapping=" in person.lab.run("qm config 103").stdout
    assert " 103" in (person.lab.root / "run/qemu-server/pci-id-reservations").read_text()


CONTAINERS: dict[str, tuple[list[tuple[str, str]], dict[str, Any]]] = {
    "phoenix": (
        [
            ("What is rtx5090", ENTER),  # container 950 has it: containers are preselected
            ("For which containers?", f"{SPACE}{DOWN}{SPACE}{ENTER}"),  # 901, and no more 950
            ("What is rtx4090", ENTER),
            ("For which containers?", f"{SPACE}{DOWN}{SPACE}{ENTER}"),
            ("What is ", ENTER),
            ("CUDA's toolkit in the containers", ENTER),
            ("NVIDIA's container toolkit in the containers", ENTER),
        ],
        {"ai-lab": {"host": "phoenix", "ctid": 901, "gpus": ["rtx5090", "rtx4090"], "nvidia": {"cuda": "13.0"}}},
    ),
    "containers-pve8": (
        [
            ("What is uhd", ENTER),
            ("What is rtx4060", f"{UP}{UP}{ENTER}"),  # from the end: none, host, containers
            ("For which containers?", f"{DOWN}{SPACE}{ENTER}"),  # 210 is preselected; 211, too
            ("What is rtx3060", ENTER),
            ("CUDA's toolkit in the containers", f"{UP}{ENTER}"),  # none: around the list's end
            ("NVIDIA's container toolkit in the containers", ENTER),
        ],
        {
            "jellyfin": {"host": "pve", "ctid": 210, "gpus": ["rtx4060"], "nvidia": {}},
            "ai-lab": {"host": "pve", "ctid": 211, "gpus": ["rtx4060"], "nvidia": {}},
        },
    ),
}


@pytest.mark.parametrize("scenario", CONTAINERS)
def test_cards_for_containers(at_a_terminal: Callable[[str], Person], scenario: str) -> None:
    person = at_a_terminal(scenario)
    conversation, expected = CONTAINERS[scenario]
    spawned, screen = person.init("--no-preview"), Terminal(100)
    spawned.logfile_read = screen
    shown = answer(spawned, *log_in(person), *conversation, *agree())
    assert "pveum" not in shown  # containers take no API
    found = yaml.safe_load((person.folder / "Pulumi.homelab.yaml").read_text())["config"]["homelab:containers"]
    assert found == expected
    if scenario == "phoenix":
        recording.hold_init(scenario, screen.lines(), person.folder, person.lab)
        recording.hold_up(scenario, person.up_at_a_terminal().lines())
    else:
        person.up()
    for container in expected.values():
        inside = person.lab.run(f"pct exec {container['ctid']} -- nvidia-smi -L").stdout
        assert len(inside.splitlines()) == len(container["gpus"])
