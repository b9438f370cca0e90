"""The gaming project: a second program takes the card by the homelab stack's outputs, and gives it back."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from homelab import contract
from tests.conftest import PROJECT
from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_vm import conf, vms, with_card
from tests.installed import install, wheel
from tests.waiting import PATIENCE

GAMING = PROJECT / "examples" / "gaming_vm"
SANDBOX = {"sandbox": {"vmid": 103, "gpus": ["rtx5090"]}}


def example() -> dict[str, Any]:
    """The configuration that comes with the example."""
    config: dict[str, Any] = yaml.safe_load((GAMING / "Pulumi.gaming.yaml").read_text())["config"]
    return config


@functools.cache
def environment_with_homelab() -> Path:
    """What a project of somebody's own has as .venv, with homelab's wheel; it ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="homelab-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    install(wheel(folder), folder / "venv")
    return folder / "venv"


def gaming_beside(homelab: Stack) -> Stack:
    """The gaming project's stack in the same backend: its own example filled in, as its README says."""
    config = example()
    config["gaming-vm:homelab"] = "organization/homelab/lab"
    config["homelab:hosts"] = {"pve": homelab.host}
    config["homelab:allowPlainSecrets"] = True
    folder = homelab.folder.parent / "gaming"
    folder.mkdir()
    # A project of somebody's own, somewhere else.
    project = homelab.folder.parent / "gaming-vm"
    shutil.copytree(GAMING, project, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    (project / ".venv").symlink_to(environment_with_homelab())
    stack = Stack(folder, homelab.engine, config, project=project, backend=homelab.folder, lab=homelab.lab)
    create = config["homelab:vms"]["gaming"]["create"]
    isos = [create[key].partition(",")[0].rpartition("/")[2] for key in ("sata0", "sata1")]
    homelab.lab.run(
        f'cd "$HOMELAB_ROOT/var/lib/vz" && mkdir -p template/iso && cd template/iso && touch {" ".join(isos)}'
    )
    stack.create()
    return stack


def test_the_card_is_handed_over_and_back(converged: Callable[..., Stack], subtests: pytest.Subtests) -> None:
    homelab = converged("rtx5090", vms=SANDBOX)
    gaming = gaming_beside(homelab)
    sandbox, before, mark = vms(homelab)["sandbox"], conf(homelab, 103), homelab.lab.mark()

    # The sandbox has it: an `up` changes nothing.
    refused = gaming.up(ok=False)
    with subtests.test("the sandbox has it"):
        assert "vms.sandbox (VM 103, Sandbox, running) of organization/homelab/lab has it" in refused.message
        assert "take rtx5090 out of homelab:vms.sandbox.gpus" in refused.message
        assert homelab.lab.api_calls(mark) == []

    # The other way round: first the sandbox gives it away. A VM that has it by hand: tests/unit/test_cards.py.
    sandbox["gpus"] = []
    homelab.up()
    with subtests.test("nobody has it"):
        assert contract.consumed("lab", homelab.output())["hosts"]["pve"]["gpus"]["rtx5090"].get("holder") is None

    # Windows is installed, and the card is its screen.
    gaming.config["homelab:vms"]["gaming"]["gpus"] = [{"gpu": "rtx5090", "xVga": True}]
    # No option names the configuration: `pulumi preview --stack lab` in the folder, with Pulumi.lab.yaml beside Pulumi.yaml, as its README says.
    gaming.write_config()
    environment = GAMING / ".venv"
    had_environment = environment.exists()
    if not had_environment:  # else Pulumi makes one, with packages from the network (tests/unit/test_lent_cards.py)
        environment.unlink(missing_ok=True)  # of a run that was killed
        environment.symlink_to(environment_with_homelab())
    file = GAMING / "Pulumi.lab.yaml"
    shutil.copy(gaming.folder / file.name, file)
    try:
        done = subprocess.run(
            [str(gaming.engine.pulumi), "preview", "--stack", "lab", "--non-interactive"],
            cwd=GAMING, env=gaming.environment, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        file.unlink()
        if not had_environment:
            environment.unlink()
    with subtests.test("a preview in the project's folder"):
        assert done.returncode == 0 and "gaming-vm" in done.stdout, done.stdout + done.stderr
    gaming.up()
    with subtests.test("the gaming VM has it"):
        assert with_card(homelab) == {"0000:01:00.0": 104, "0000:01:00.1": 104}
        assert homelab.machine.guests_on() == {103, 104}
    with subtests.test("what Windows needs"):
        written = set(conf(homelab, 104).splitlines())
        card = "hostpci0: mapping=rtx5090,pcie=1,x-vga=1"
        assert {card, "machine: q35", "bios: ovmf", "cpu: host", "ostype: win11"} <= written
        assert any(line.startswith("tpmstate0: ") and "version=v2.0" in line for line in written)
        assert any(line.startswith("efidisk0: ") and "pre-enrolled-keys=1" in line for line in written)
        assert {line.partition(",")[0] for line in written if line.startswith("sata")} == {
            "sata0: local:iso/Win11_24H2_English_x64.iso",
            "sata1: local:iso/virtio-win.iso",
        }
    with subtests.test("outputs"):
        assert gaming.output()["vms"]["gaming"]["gpus"] == ["rtx5090"]

    # Back, in the wrong order: nothing is taken from a VM that runs.
    sandbox["gpus"] = ["rtx5090"]
    assert "VM 104 (gaming) runs with it" in homelab.up(ok=False).message
    with subtests.test("nothing is taken from a VM that runs"):
        assert with_card(homelab)["0000:01:00.0"] == 104
        # An `up` that failed leaves the outputs of the one before, by which the gaming project goes on.
        assert contract.consumed("lab", homelab.output())["hosts"]["pve"]["gpus"]["rtx5090"].get("holder") is None

    # And in the right one. Destroyed with the card in it: the card is free, the mapping stays.
    gaming.destroy_as_left()
    with subtests.test("the gaming VM is gone"):
        assert (with_card(homelab), homelab.machine.guests_on()) == ({}, {103})
        assert not (homelab.lab.root / "etc/pve/qemu-server/104.conf").exists()
    homelab.up()
    assert conf(homelab, 103) == before
    assert with_card(homelab) == {"0000:01:00.0": 103, "0000:01:00.1": 103}
