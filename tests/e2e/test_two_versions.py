"""Two versions on one host, each with a stack of its own: what one of them has written there, the other one reads, and goes on with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Stack
from tests.e2e.programs import OURS, Program, program_of_2_1_0
from tests.e2e.roads import TEMPLATE, rootfs
from tests.e2e.test_gpu_lxc import opens
from tests.e2e.test_released import CARD, OWED, StackOn, go, left_by_2_1_0
from tests.waiting import wait_until

HANDOVER, STARTER, BOX = "usr/local/sbin/homelab-handover", "var/lib/homelab/owed-program", 300
# What the host's timer starts, without the minute for which it waits for a run.
_START = """\
import sys
sys.path.insert(0, sys.argv[1])
from remote_scripts import agent
from remote_scripts.layers import start_guests
start_guests._GRACE_SECONDS = 0
sys.exit(agent.program("start_guests", []))
"""


def second_stack(stack: Stack, folder: Path, program: Program) -> Stack:
    """Another project's on the same host: it makes a container, which has the host's other card."""
    (folder / "project").mkdir(parents=True)
    (folder / "stack").mkdir()
    host = stack.machine
    host.run(f'cd "$HOMELAB_ROOT"/var/lib/vz && mkdir -p template/cache && touch template/cache/{TEMPLATE}')
    create = {
        "ostemplate": f"local:vztmpl/{TEMPLATE}",
        "rootfs": rootfs(host),
        "memory": 64,
        "ostype": "unmanaged",
        "arch": "amd64",
    }
    reached = {key: stack.host[key] for key in ("address", "node", "ssh", "timeouts")}
    config: dict[str, Any] = {
        "homelab:hosts": {"pve": reached | {"gpus": {"small": {"match": "10de:2684", "use": "lxc"}}}},
        "homelab:containers": {
            "box": {"host": "pve", "ctid": BOX, "gpus": ["small"], "power": "running", "create": create}
        },
        "homelab:plan": "auto",
    }
    project = program.copy_to(folder / "project", "beside")
    beside = Stack(folder / "stack", stack.engine, config, project=project.folder, lab=stack.lab)
    beside.create()
    return beside


@pytest.mark.parametrize("is_ours_first", [False, True], ids=["ours beside 2.1.0", "2.1.0 beside ours"])
def test_a_shared_card_goes_to_its_vm_and_back_whichever_version_has_begun_and_whichever_ends_it(
    stack_on: StackOn, tmp_path: Path, is_ours_first: bool
) -> None:
    (tmp_path / "2.1.0").mkdir()
    theirs = program_of_2_1_0(tmp_path / "2.1.0")
    first, second = (OURS, theirs) if is_ours_first else (theirs, OURS)
    stack, _ = left_by_2_1_0(stack_on, "shared")
    root, stack.project = stack.lab.root, first.folder
    stack.lab.run("pct start 901")
    stack.up()
    programs = {
        program: (program.installed("handover"), program.installed("start_guests")) for program in (first, second)
    }
    assert (root / HANDOVER).read_bytes()[-64:] == programs[first][0][-64:], "of the version that was run last"

    def put(program: Program) -> None:
        """What the version has that has written last: one file serves all stacks of a host."""
        for name, content in zip((HANDOVER, STARTER), programs[program], strict=True):
            if (root / name).exists():
                (root / name).write_bytes(content)

    def is_with_vm() -> bool:
        return stack.machine.drivers()[CARD] == "vfio-pci" and stack.machine.guests_on() == {103, BOX}

    def is_back(*guests: int) -> bool:
        record = root / "var/lib/homelab/handover/big.state"
        return (
            stack.machine.guests_on() == {950, BOX, *guests}
            and not record.exists()
            and stack.machine.drivers()[CARD] == "nvidia"
        )

    beside = second_stack(stack, tmp_path / "beside", second)
    _, changed = go(beside, "up", "--yes", "--skip-preview")
    guests = {name for name in changed if name.startswith("etc/pve/nodes") or re.match(r"etc/pve/homelab/\w+-\d", name)}
    assert opens(stack, BOX, "/dev/nvidia1") and all(name.endswith((f"/{BOX}.conf", f"-{BOX}")) for name in guests), (
        guests
    )
    stack.lab.run("qm start 103")
    assert is_with_vm()
    for each in stack, beside:
        read, changed = go(each, "refresh", "--yes", "--skip-preview")
        assert (read.steps, changed) == ([], set()) and "not compared: gpus.big is with VM 103" in read.output
    as_it_was = (root / HANDOVER).read_bytes()
    for begins, ends in (first, second), (second, first):
        if not is_with_vm():
            put(begins)
            stack.lab.run("qm start 103")
            assert is_with_vm()
        put(ends)
        # A guest that can't be started when the card is back stays owed. The host's timer, which would look at it meanwhile, is stopped.
        stack.lab.run("systemctl stop homelab-owed.timer; pct set 901 --lock backup; qm stop 103")
        wait_until(is_back)
        assert '"guest": 901' in (root / OWED).read_text()
        put(begins)
        started = stack.lab.run(f"pct unlock 901; /usr/bin/python3 -c '{_START}' $HOMELAB_ROOT/{STARTER}")
        assert "container 901 (ai-lab)" in started.stderr and is_back(901) and not (root / OWED).exists()
    (root / HANDOVER).write_bytes(as_it_was)
    again, _ = go(stack, "up", "--refresh", "--yes", "--skip-preview")
    assert again.changed == set(), again.output
