"""From nothing but an address and a password to a working card: `homelab init` in a real terminal, then the real `pulumi up`.

Here on a machine where nothing is set up, with a passphrase, and what the terminal shows. The other scenarios: `by_init` in conftest.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import Lab
from lab.engine import install
from lab.stock import without_subscription
from tests.e2e import history, recording, terminal
from tests.e2e.person import ENTER, PASSPHRASE, Person, agree
from tests.e2e.terminal import Conversation
from tests.sampling import sample


@pytest.fixture
def at_a_terminal(engine: install.Engine, tmp_path: Path) -> Iterator[Callable[[str], Person]]:
    labs: list[Lab] = []

    def person(scenario: str) -> Person:
        labs.append(Lab.start(scenario, state=tmp_path / "lab"))
        return Person.of_a_new_machine(tmp_path, engine, labs[-1], os.environ)

    yield person
    for lab in labs:
        lab.stop()


# Where one VM could have the card, it is preselected; and nobody has the host's screen.
VMS: dict[str, Conversation] = {
    "rtx5090": [
        ("Who gets it", ENTER),
    ],
}


@pytest.mark.parametrize("scenario", VMS)
def test_a_card_for_a_vm(at_a_terminal: Callable[[str], Person], scenario: str) -> None:
    person = at_a_terminal(scenario)
    shown, screen = person.init([*VMS[scenario], *agree()])
    assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in shown
    assert "→ VM 103 (Sandbox), running" in shown and "  pulumi up --suppress-outputs" in shown
    assert person.lab.connection["password"] not in shown and PASSPHRASE not in shown
    person.lab.machine.set_fault("hang-seconds", 7)  # a host that takes longer to start
    display = person.at_a_terminal("up")
    assert ("homelab:vm:Cards", "sandbox-cards") in terminal.readable(display)
    said = terminal.said_meanwhile(display, "homelab:host:BootCheck")
    recording.hold_init(scenario, screen, person.folder, person.lab)
    recording.hold_up(scenario, display.lines())
    recording.hold_show(scenario, person.show(), person.folder, person.lab)
    assert [one for one in said if re.search(r"creating.* restarts: \d+ s, at most \d+", one)], said
    assert "hostpci0: mapping=" in person.lab.run("qm config 103").stdout
    assert " 103" in (person.lab.root / "run/qemu-server/pci-id-reservations").read_text()


# As installed, without a guest, unless a scenario is named; where the driver is to be built, with Proxmox VE's packages for who has no
# subscription.
ANSWERS: dict[str, tuple[str, str, str]] = {
    # answer: scenario, what is said before it is asked, what `up` ends with
    "vms": ("", "can't go to the host itself: 6.14.11-4-pve", "RTX 5090: a test VM has seen it"),
    "new-vm": ("", "can't go to the host itself: 6.14.11-4-pve", "→ VM 100 (ubuntu)"),
    "new-vm:debian-13.1.0-amd64-netinst.iso": ("", "new-vm:debian-13.1.0-amd64-netinst.iso: ", "→ VM 100 (debian)"),
    "new-container": ("", "before you rely on it there are, by number", "→ container 100 (debian)"),
    "host": ("firmware-off", "can't go to a VM: no DMAR table", "host pve: NVIDIA driver 580"),
    "103": ("rtx5090", "VM 103 (Sandbox), running", "→ VM 103 (Sandbox)"),
}


@pytest.mark.parametrize("answer", sample([*ANSWERS], 2, "answers to who gets it"))
def test_a_host_as_installed_is_set_up_and_given_back(engine: install.Engine, tmp_path: Path, answer: str) -> None:
    """At a terminal of 80 columns and 24 lines."""
    scenario, said, result = ANSWERS[answer]
    bare = tmp_path / "bare.yaml"
    bare.write_text(yaml.safe_dump({"extends": "rtx5090", "title": "As installed", "guests": []}))
    with Lab.start(scenario or str(bare), state=tmp_path / "lab") as lab:
        builds = answer in ("new-container", "host")
        if builds:
            without_subscription(lab.root)
            lab.run("apt-get update")
        if answer.endswith(".iso"):
            iso = lab.root / "var/lib/vz/template/iso" / answer.partition(":")[2]
            iso.parent.mkdir(parents=True, exist_ok=True)
            iso.write_text("an installer")
        stock = lab.snapshot()
        person = Person.of_a_new_machine(tmp_path, engine, lab, os.environ)
        person.columns, person.lines = 80, 24
        shown, screen = person.init([("Who gets it", f"{answer}{ENTER}"), *agree()])
        assert said in " ".join(shown.partition("Who gets it")[0].split())
        is_said = "`pulumi destroy` deletes it with its disks" in " ".join(shown.split())
        assert is_said is answer.startswith("new-"), shown
        assert not [line for line in screen if len(line) > 80]
        done = "".join("".join(person.at_a_terminal("up").lines()).split())
        assert "".join(result.split()) in done
        person.at_a_terminal("destroy")
        left = {path for path, entry in lab.snapshot().items() if stock.get(path) != entry}
        assert stock.keys() <= lab.snapshot().keys()
        # The key that logs in stays, and NVIDIA's driver.
        assert left == {KEYS} or (builds and not [one for one in left if one.startswith("etc/pve/") and one != KEYS]), (
            left
        )


KEYS = "etc/pve/priv/authorized_keys"
CONTAINERS: dict[str, tuple[Conversation, dict[str, Any], list[str]]] = {
    "phoenix": (
        [("Who gets it", f"901{ENTER}")] * 2,  # container 950 has them: it is preselected
        {"ai-lab": {"host": "phoenix", "ctid": 901, "gpus": ["rtx5090", "rtx4090"], "nvidia": {"cuda": "13.0"}}},
        ["--set", 'containers.ai-lab.nvidia.cuda="13.0"'],
    ),
    "containers-pve8": (
        [("rtx4060: ", f"210,211{ENTER}"), ("rtx3060-lite-hash-rate: ", ENTER)],
        {
            "jellyfin": {"host": "pve", "ctid": 210, "gpus": ["rtx4060"], "nvidia": {}},
            "ai-lab": {"host": "pve", "ctid": 211, "gpus": ["rtx4060"], "nvidia": {}},
        },
        [],
    ),
    "tesla-p4": (
        [
            ("tesla-p4: ", f"301{ENTER}"),
            *((f"{card}: ", ENTER) for card in ("tesla-p4-2", "tesla-p4-3", "tesla-p4-4")),
        ],
        {"ollama": {"host": "pve", "ctid": 301, "gpus": ["tesla-p4"], "nvidia": {}}},
        [],
    ),
}


@pytest.mark.one_of("containers of a person at a terminal")
@pytest.mark.parametrize("scenario", sample([*CONTAINERS], 1, "containers at a terminal"))
def test_cards_for_containers(at_a_terminal: Callable[[str], Person], scenario: str) -> None:
    """What `up` makes of such settings: below, and tests/e2e/test_nvidia_lxc.py."""
    person = at_a_terminal(scenario)
    conversation, expected, options = CONTAINERS[scenario]
    _, screen = person.init([*conversation, *agree()], *options)
    found = yaml.safe_load((person.folder / "Pulumi.homelab.yaml").read_text())["config"]["homelab:containers"]
    assert found == expected
    if scenario == "phoenix":
        recording.hold_init(scenario, screen, person.folder, person.lab)


@pytest.mark.one_of("containers of a person at a terminal")
def test_a_host_with_a_history_is_taken_over_and_left_as_its_owner_had_it(
    engine: install.Engine, tmp_path: Path
) -> None:
    """Passthrough by a forum's recipe, two cards, six containers, a Windows VM: tests/e2e/recorded/history.txt."""
    with Lab.start(str(history.scenario(tmp_path)), state=tmp_path / "lab") as lab:
        history.apply(lab)
        before, checksums = lab.snapshot(), history.checksums(lab)
        person = Person.of_a_new_machine(tmp_path, engine, lab, os.environ)
        _, screen = person.init([*history.CONVERSATION, *agree()])
        recording.hold_init("history", screen, person.folder, lab)
        recording.hold_up("history", person.at_a_terminal("up").lines())
        recording.hold_show("history", person.show(), person.folder, lab)
        assert "hostpci0: mapping=rtx4090,pcie=1,x-vga=1" in lab.run("qm config 110").stdout
        assert history.checksums(lab) != checksums
        person.at_a_terminal("destroy")
        assert history.checksums(lab) == checksums
        left = {path for path, entry in lab.snapshot().items() if before.get(path) != entry}
        assert not [path for path in left if path.startswith("etc/") and "homelab" in path], left
