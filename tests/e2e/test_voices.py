"""The voices about one host, held to each other with the engine: a refresh, its preview, doctor and show, after something was done to the host since the
last `up`; and the `up` that mends it. What was done is drawn. Without an engine, and of far more states: tests/lab/test_voices.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from homelab.cli import doctor, show
from homelab.doctor.whole import Whole
from homelab.findings import Turn
from tests import connections, sampling
from tests.conftest import PROJECT
from tests.e2e.conftest import Stack
from tests.e2e.test_gpu_lxc import CARDS, NO_REBOOT, PHOENIX
from tests.e2e.test_gpu_vm import SANDBOX
from tests.e2e.test_handover import CONTAINERS, SHARED, VMS
from tests.lab.test_voices import IN_TURN, OF_A_HOST, OF_A_VM, OF_CONTAINERS
from tests.waiting import PATIENCE


def heard(stack: Stack) -> tuple[Whole, set[str]]:
    """The doctor's report, and the guests that have a sign in the tree, by their names in the settings."""
    file = ["--config-file", str(stack.folder / "Pulumi.lab.yaml")]
    told = doctor.everything(doctor.parser().parse_args(["stack", *file]))
    nodes = [node for root in show.trees(show.parser().parse_args(file)) for node in root.walk()]
    connections.end_all()
    marked = [node.text for node in nodes if node.kind == "guest" and node.mark != "stays"]
    return told, {"vms.sandbox" if text.startswith("VM") else "containers.phoenix" for text in marked}


#: Of each of three bases, which follow each other, so many states are drawn.
STATES = 10


@pytest.mark.parametrize(
    "number",
    [
        3 * state + base
        for base in sampling.sample(range(3), 1, "bases")
        for state in sampling.sample(range(STATES), 1, "voices")
    ],
)
def test_what_was_done_to_a_host_is_told_alike_and_mended(converged: Callable[..., Stack], number: int) -> None:
    of_a_vm = (
        *("a file changed", "a file gone", "words gone", "a menu without words", "its agent gone", "the mapping gone"),
        *("the mapping changed", "the mapping of another slot", "the card taken out", "its option changed"),
        *("the VM off", "taken out, locked", "others' change waits"),
    )
    of_containers = (
        *("a line gone", "the service gone", "the service off", "a module gone, off", "the container off"),
        "a line gone, locked",
    )
    in_turn = (
        *("the VM has it", "the hook gone", "the timer off", "a program gone", "a line gone", "the card taken out"),
        "a module gone",
    )
    # Each base's kinds, with the commands that make them.
    kinds: dict[str, dict[str, Any]] = {
        "a VM": {kind: (OF_A_HOST | OF_A_VM)[kind] for kind in of_a_vm} | {"a run killed": OF_A_VM["a file gone"]},
        "a container": {kind: OF_CONTAINERS[kind] for kind in of_containers},
        "a card in turn": {kind: IN_TURN[kind] for kind in in_turn},
    }
    # What differs so far, by rule: a kind -> why.
    left_out: dict[str, dict[str, str]] = {
        "refusals are the doctor's": {"the VM has it": "that is nothing wrong: it stands in the cures alone"},
        "an `up` ends it": {"the VM has it": "the preview of a host whose settings are as they were passes"},
    }
    rng, base = sampling.drawn(f"voices {number}"), [*kinds][number % len(kinds)]
    drawn = rng.sample([*kinds[base]], rng.randint(1, 3))
    if base == "a VM":
        stack = converged("rtx5090", vms=SANDBOX)
    else:
        stack = converged("phoenix", gpus=CARDS, containers=PHOENIX, **NO_REBOOT)
    if base == "a card in turn":
        stack.lab.run(
            "qm set 103 --onboot 0; qm shutdown 103; "
            "pvesh set /storage/local --content images,iso,vztmpl,backup,rootdir,snippets"
        )
        stack.host.update(gpus=SHARED, nvidia={"driver": "580"}, iommu={})
        stack.config["homelab:vms"] = {name: {"host": "pve", **one} for name, one in VMS.items()}
        stack.config["homelab:containers"] = {name: {"host": "pve", **one} for name, one in CONTAINERS.items()}
        stack.up()
    (stack.folder / "Pulumi.yaml").symlink_to(PROJECT / "Pulumi.yaml")
    for kind in drawn:
        stack.lab.run(kinds[base][kind], check=False)
    if "a run killed" in drawn:
        stack.lab.fault("script-hangs", '"layer": "initramfs"')
        process = stack.start("up", "--refresh", "--yes", "--skip-preview")
        stack.lab.wait_command('"layer": "initramfs"', timeout=PATIENCE)
        stack.kill(process)
        stack.lab.fault("script-hangs", None)
        stack.unlock()
    stack.lab.wait_idle()
    parts = {"pve": "hosts.pve", "sandbox": "vms.sandbox", "phoenix": "containers.phoenix"}

    def differences() -> Iterator[tuple[str, str]]:
        """Each with its rule."""
        preview = stack.run("preview", "--refresh")
        told, signs = heard(stack)
        up = {one.wanted.partition(": ")[0] for one in told.findings if one.turn is Turn.UP}
        refused = {one.found for one in told.findings if one.turn is Turn.REFUSED}
        cures = [step for step in told.values()["next"] if step.startswith("`pulumi up")]
        drift = {parts[name.partition("-")[0]] for name in preview.found_changed}
        planned = {parts[name.partition("-")[0]] for operation, name in preview.planned if operation != "refresh"}
        planned |= {"vms.sandbox"} if {"pve-rtx5090", "pve-big"} & preview.found_changed else set()
        if up != drift:
            yield "the doctor's steps are a refresh's", f"doctor, up: {up}; refresh: {preview.found_changed}"
        if bool(refused) is not bool(preview.code) or not all(one in preview.message for one in refused):
            yield "refusals are the doctor's", f"preview: {preview.message}; doctor: {refused}"
        if preview.code and cures:
            yield "no cure is refused", f"preview: {preview.message}; doctor: {cures}"
        if not preview.code and not signs <= planned:
            yield "a sign is a step", f"show: {signs}; preview: {planned}"
        if not preview.code:
            mended = stack.run("up", "--refresh", "--yes", "--skip-preview")
            told, signs = heard(stack)
            left = {one.found for one in told.findings if one.turn is not Turn.PERSON}
            if mended.code or left or signs:
                yield "an `up` ends it", f"{mended.message}; doctor: {left}; show: {signs}"

    found = [(rule, what) for rule, what in differences() if not left_out.get(rule, {}).keys() & {base, *drawn}]
    assert not found, f"{base}: {', '.join(drawn)}: " + "\n".join(f"{rule}\n    {what}" for rule, what in found)
