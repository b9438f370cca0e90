"""A host converges, stays, and is given back. Which hosts there are, is shown without the engine: tests/lab/test_bound_hosts.py."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from homelab.host import gates
from homelab.remote import host_session
from tests import connections
from tests.e2e import terminal
from tests.e2e.conftest import Stack
from tests.e2e.person import ENTER, Conversation
from tests.e2e.test_gpu_vm import conf, given_back, with_card
from tests.lab.host_kit import settings_of
from tests.lab.test_real_hosts import read
from tests.sampling import sample
from tests.unit.hosts import settings
from tests.waiting import PATIENCE

# What a person is asked of the host's cards, and which keys answer it: where one VM could have a card, it is preselected. VM 103 runs on most of
# these hosts.
ITS_SCREEN = [  # the host has no other card
    ("gtx1080: ", f"103{ENTER}"),
    ("all the same", f"y{ENTER}"),
]
# Scenario -> the slot that must be on vfio-pci afterwards, what is asked, further options.
SCENARIOS: dict[str, tuple[str, Conversation, list[str]]] = {
    "rtx5090": (
        "0000:01:00",
        [("rtx5090: ", ENTER)],
        [],
    ),
    "wtr-max": (
        "0000:01:00",
        [("rtx5060-ti: ", ENTER)],
        [],
    ),
    "intel-zfs": (
        "0000:01:00",
        [("rtx4070: ", ENTER)],
        [],
    ),
    "two-identical": ("0000:1e:00", [("rtx3090-2: ", ENTER)], []),
    "four-functions": (
        "0000:01:00",
        [("rtx2060-rev-a: ", ENTER)],
        [],
    ),
    # Its containers are to lose the card.
    "phoenix": (
        "0000:02:00",
        [("rtx5090: ", f"nobody{ENTER}"), ("all the same", f"y{ENTER}")],
        ["--card", "rtx4090=103"],
    ),
    "intel-grub-bios": ("0000:03:00", ITS_SCREEN, []),
    "zfs-grub-shim": (
        "0000:01:00",
        [("rtx4060: ", ENTER)],
        [],
    ),
    "iommu-off": ("0000:03:00", ITS_SCREEN, []),
    "bound-by-hand": (
        "0000:01:00",
        [("rtx5090: ", ENTER)],
        ["--set", "hosts.pve.takeOver=true"],
    ),
    "half-bound": (
        "0000:01:00",
        [("rtx5060-ti: ", ENTER)],
        [],
    ),
    # No guest, and the host's driver has both cards.
    "recorded-node": (
        "0000:41:00",
        [("rtx4090: ", ENTER), ("rtx4090-2: ", ENTER)],
        [
            *("--set", 'hosts.pve.gpus.rtx4090-2={match: "10de:2684", address: "0000:41:00", use: vm}'),
            *(
                "--set",
                "vms.gpu={host: pve, vmid: 100, gpus: [rtx4090-2], create: {scsi0: local-lvm:64}}",
            ),
        ],
    ),
}


# With systemd-boot; GRUB has it in the other tests. What the others are bound by, and that they are given back, takes no engine:
# tests/lab/test_bound_hosts.py (test_a_host_is_bound_by_what_is_planned_for_it_and_given_back).
WHOLE = "intel-zfs"


def up_at_80_columns(stack: Stack) -> terminal.Terminal:
    """A first `up` at a terminal, as a person sees it."""
    environment = {name: value for name, value in stack.environment.items() if name != "NO_COLOR"}
    command = [str(stack.engine.pulumi), "up", "--yes", "--skip-preview", "--stack", "lab", "--cwd", str(stack.project)]
    command += ["--config-file", str(stack.folder / "Pulumi.lab.yaml")]
    stack.write_config()
    return terminal.run(command, 80, environment | {"TERM": "xterm-256color"}, str(stack.folder), PATIENCE)


def can_be_read(shown: terminal.Terminal) -> None:
    assert ("homelab:host:BootCheck", "pve-booted") in terminal.readable(shown)
    # While it is at work, the beginning of what a step says is there.
    said = terminal.said_meanwhile(shown, "homelab:vm:Cards")
    assert {one.split()[-1] for one in said if one.startswith("creating (") and not one.endswith(")")}, said
    # Why it is rebooted is said once, in words; the terminal's edge may be in the middle of one.
    text = "".join("".join(shown.lines()).split())
    assert text.count("thekernelcommandlinegetsintel_iommu=oniommu=pt") == 1, text
    assert "homelab.vfio=" not in text.partition("Outputs:")[0] and text.count("itstopsVM103(Sandbox)") <= 2


def test_from_stock_to_bound_and_back(by_init: Callable[..., Stack]) -> None:
    """From nothing but the host's address and a password, by `homelab init` at a terminal; the `up` can be read there."""
    slot, conversation, options = SCENARIOS[WHOLE]
    stack = by_init(WHOLE, *conversation, options=options)
    stock = stack.lab.snapshot()
    before = stack.drivers()
    mark = stack.lab.mark()

    can_be_read(up_at_80_columns(stack))

    bound = {address for address, driver in stack.drivers().items() if driver == "vfio-pci"}
    assert bound == {address for address in before if address.startswith(slot)}
    others = {address: driver for address, driver in stack.drivers().items() if address not in bound}
    assert others == {address: before[address] for address in others}
    assert [boot["reason"] for boot in stack.lab.boots(since=mark)] == ["reboot"]
    asked = [entry for entry in stack.lab.commands(since=mark) if "sys.stdin.buffer.readline()" in entry["command"]]
    assert len({entry["connection"] for entry in asked}) == 2 < len(asked), (
        "the provider's, before the restart and after it"
    )
    made = [entry["program"] for entry in stack.lab.programs(since=mark)]
    assert (made.count("update-initramfs"), made.count("update-grub")) == (1, 0)
    # The VM has the card; one that was off stays so.
    (vm,) = stack.config["homelab:vms"].values()
    assert "hostpci0: mapping=" in conf(stack, vm["vmid"])
    assert with_card(stack) == dict.fromkeys(bound, vm["vmid"])
    (output,) = stack.output()["hosts"].values()
    functions = [function for gpu in output["gpus"].values() for function in gpu["functions"]]
    assert {function["address"] for function in functions} == bound
    assert {function["driver"] for function in functions} == {"vfio-pci"}
    assert output["iommu"]["groups"] > 0

    assert output["iommu"]["kernelLog"] == []

    mark = stack.lab.mark()
    refreshed = stack.up("--refresh")
    assert refreshed.changed == set()
    assert len(stack.lab.connections(since=mark)) == 1
    assert [one for one in stack.lab.programs(since=mark) if one["program"] not in ("ip", "lspci", "qm", "pct")] == []

    gone = stack.destroy()
    assert "the running kernel keeps the old command line" in gone.output
    given_back(stack, stock)
    assert not (stack.lab.root / "var/lib/homelab").exists()
    assert stack.drivers()[min(bound)] == "vfio-pci"  # until a reboot, as it said
    stack.lab.reboot()
    assert stack.drivers() == before


@pytest.mark.parametrize("scenario", sample(sorted(SCENARIOS.keys() - {WHOLE}), 1, "what a person answers"))
def test_what_a_person_answers_at_a_terminal_gives_the_slot_to_the_vm(
    by_init: Callable[..., Stack], scenario: str
) -> None:
    """Others with another seed. What `up` makes of that takes no person: tests/lab/test_bound_hosts.py has each of these hosts."""
    slot, conversation, options = SCENARIOS[scenario]
    stack = by_init(scenario, *conversation, options=options)
    (host,) = stack.config["homelab:hosts"].values()
    (vm,) = stack.config["homelab:vms"].values()
    (name,) = vm["gpus"]
    wanted = settings({name: host["gpus"][name]})
    slots, refused = gates.check(read(stack.lab.machine), wanted)
    assert (slots, refused) == ({name: slot}, [])


def test_the_steps_happen_in_the_order_of_their_dependencies(converged: Callable[..., Stack]) -> None:
    stack = converged("rtx5090")
    chain = [
        "pve-probe",
        "pve-cmdline",
        "pve-initrd",
        "pve-bind",
        "pve-reboot",
        "pve-booted",
    ]
    up = stack.first
    assert up and [name for _, name in up.steps if name in chain] == chain
    made = [entry["program"] for entry in stack.lab.programs()]
    # The menu once: the boot entry that is tried needs none.
    assert (made.count("update-initramfs"), made.count("grub-mkconfig")) == (1, 1)
    # Once the boot is confirmed, nothing is left of what would have taken it back.
    assert not list((stack.lab.root / "etc/systemd/system").rglob("homelab-rollback*"))
    assert not [timer for timer in stack.lab.timers() if "homelab" in json.dumps(timer)]
    # What the reboot stops is said before anything is changed.
    texts = [json.dumps(event) for event in up.events]
    said = next(number for number, text in enumerate(texts) if "it stops VM 103 (Sandbox)" in text)
    changed = next(number for number, text in enumerate(texts) if "resourcePreEvent" in text and "pve-cmdline" in text)
    assert said < changed
    # Taken back in the other order; not at all while another run has the host.
    configured = stack.lab.snapshot()
    host_session.of("another").hold(settings_of(stack.lab))
    try:
        refused = stack.destroy(ok=False)
        assert refused.message.count("wanted:") == 1, refused.message
        assert "to be the only run at work on this host" in refused.message
        assert stack.lab.snapshot() == configured
    finally:
        connections.end_all()
    taken = [name for operation, name in stack.destroy().steps if operation == "delete" and name in chain]
    assert taken == chain[::-1]
