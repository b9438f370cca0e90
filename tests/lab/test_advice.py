"""What messages advise is run on the lab as they say it, and cures what it is given for (tests/advice.yaml says which).

`make test` runs a sample of it (tests/sampling.py), `make test-nightly` each.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from homelab import settings, tables
from homelab.cli.doctor import main as run_doctor
from homelab.errors import HomelabError
from homelab.host import gates, plan
from homelab.remote import ssh
from homelab.vm import plan as vm_plan
from homelab.vm import preview as vm_preview
from lab import Lab
from remote_scripts.both.container_verification import Wanted as ContainerVerification
from remote_scripts.both.passthrough_test import Wanted as PassthroughTest
from remote_scripts.both.read_system import Wanted as ReadSystem
from remote_scripts.notes.container_note import Cards
from tests import advice, sampling
from tests.boot_layers import Asked, container_cards, initramfs, iommu, vfio
from tests.conftest import shared
from tests.lab.host_kit import run_layer
from tests.lab.stack_kit import client, host_of
from tests.lab.stack_kit import host_settings as reached
from tests.lab.test_proxmox_api import without_quorum
from tests.unit.hosts import settings as host_settings
from tests.unit.hosts import told

KNOWN: dict[str, Any] = tables.read(advice.REGISTER)
CURES = [
    (command, row)
    for commands in KNOWN["cures"].values()
    for command, rows in commands.items()
    for row in (rows if isinstance(rows, list) else [])
]
# Programs of this machine that advice may run; all others are the lab's own.
OF_THIS_MACHINE = {"echo", "rm", "chmod", "grep", "openssl", "ps", "printf", "head"}


@dataclass(frozen=True)
class Row:
    """How something comes to be refused, and what the program says of it then.

    ``says``: the messages' next steps; nothing where nothing is refused. ``first``: what a message leaves to the person, before the
    command is run; ``after``: what it says has to follow.
    """

    scenario: str
    broken: Callable[[Lab], object]
    says: Callable[[Lab], list[str]]
    first: Callable[[Lab], object] = lambda lab: None
    after: Callable[[Lab], object] = lambda lab: None


# -- what the program says ----------------------------------------------------------------------------------------------
def steps(work: Callable[[], object]) -> list[str]:
    """The next step of what it fails with; nothing if it doesn't."""
    try:
        work()
    except HomelabError as error:
        return [error.next]
    return []


def of_gates(**host: Any) -> Callable[[Lab], list[str]]:
    gpus = host.pop("gpus", None)
    return lambda lab: [
        error.next for error in gates.check(ssh.read(host_of(lab), guests=True), host_settings(gpus, **host))[1]
    ]


def of_vms(**vm: Any) -> Callable[[Lab], list[str]]:
    def said(lab: Lab) -> list[str]:
        facts, host = ssh.read(host_of(lab), guests=True), host_of(lab)
        wanted = settings.Vm.model_validate({"host": "pve", "vmid": 103, "gpus": ["rtx5090"], **vm})
        found = told(facts, host, {"sandbox": wanted})[1]
        return [error.next for error in found]

    return said


def of_containers(lab: Lab) -> list[str]:
    facts, host = ssh.read(host_of(lab), guests=True), host_settings({})
    wanted = {"ai": settings.Container.model_validate({"host": "pve", "ctid": 901, "gpuAssignment": "0"})}
    errors = told(facts, host, {}, wanted)[1]
    return [error.next for error in errors]


def of_step(verb: str, asked: Asked, ctid: int = 0) -> Callable[[Lab], list[str]]:
    """A layer over no SSH: the `next` of its message."""

    def said(lab: Lab) -> list[str]:
        done = run_layer(lab.machine, verb, asked.layer, asked.wanted, ctid=ctid)
        if done.returncode == 0:
            return []
        assert done.returncode == 1, done.stdout + done.stderr
        return re.findall(r"(?m)^next: +(.*)$", done.stdout)

    return said


def of_doctor(*words: str) -> Callable[[Lab], list[str]]:
    def said(lab: Lab) -> list[str]:
        host = reached(lab) | {"gpus": {}}
        file = lab.state / "Pulumi.lab.yaml"
        file.write_text(yaml.safe_dump({"config": {"homelab:hosts": {"pve": host}}}))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert run_doctor([*words, "--json", "--config-file", str(file)]) != 2
        return [finding["next"] for finding in json.loads(out.getvalue())["findings"]]

    return said


# -- what is broken, and what a person does ---------------------------------------------------------------------------------
def on_host(text: str) -> Callable[[Lab], object]:
    return lambda lab: lab.run(text)


def fault(name: str, value: Any = True) -> Callable[[Lab], object]:
    return lambda lab: lab.fault(name, value)


def nothing(lab: Lab) -> None:
    """It is refused on the host as it is."""


def all_of(*work: Callable[[Lab], object]) -> Callable[[Lab], object]:
    def done(lab: Lab) -> None:
        for one in work:
            one(lab)

    return done


def reboot(lab: Lab) -> None:
    lab.reboot()


def with_lock(path: str, lock: str = "backup") -> Callable[[Lab], object]:
    return on_host(f"sed -i '1i lock: {lock}' $HOMELAB_ROOT/etc/pve/{path}.conf")


def append(ctid: int, *lines: str) -> Callable[[Lab], object]:
    text = "".join(f"{line}\\n" for line in lines)
    return on_host(f"printf '{text}' >>$HOMELAB_ROOT/etc/pve/lxc/{ctid}.conf")


BY_HAND = "0000:01:00,pcie=1"
SECOND_VM = (
    "qm create 104 --name second --machine q35 --memory 2048 --onboot 1; "
    f"qm set 103 --hostpci0 {BY_HAND}; qm set 104 --hostpci0 {BY_HAND}"
)


def held_card(lab: Lab) -> list[str]:
    """What the change of a VM says of a card that another VM runs with."""
    facts, host = ssh.read(host_of(lab), guests=True), host_of(lab)
    vm = settings.Vm.model_validate({"host": "pve", "vmid": 104, "gpus": ["rtx5090"]})
    wish = vm_preview.wish_of("second", vm, host, {"rtx5090": plan.card_plan(facts, host, "rtx5090", "0000:01:00")})
    errors = vm_plan.judge_vm(vm_plan.seen_of(facts, 104), wish, facts).refusals
    return [error.next for error in errors]


def verified(lab: Lab) -> list[str]:
    facts, host = ssh.read(host_of(lab), guests=True), host_settings()
    return [error.next for error in plan.verify(facts, host, plan.wanted(facts, host))]


CARDS = container_cards(901, Cards(minors=(0,)), timeout=1)
IOMMU = iommu("intel_iommu=on iommu=pt")
GIVEN = (
    "pct set 901 --dev0 /dev/nvidia0,mode=0666 --dev1 /dev/nvidiactl,mode=0666 --dev2 /dev/nvidia-uvm,mode=0666; pct reboot 901",
)


def take_out_ids(lab: Lab) -> None:
    lab.run(
        "sed -i 's/^options vfio-pci ids=.*//' $HOMELAB_ROOT/etc/modprobe.d/vfio.conf; "
        "sed -i -E 's/ ?vfio-pci.ids=[^ \"]*//' $HOMELAB_ROOT/etc/default/grub"
    )


def bind_by_words(lab: Lab) -> None:
    """As some do it on a host of systemd-boot."""
    lab.run(
        "sed -i '1s/$/ intel_iommu=on vfio-pci.ids=10de:2786,10de:22bc/' $HOMELAB_ROOT/etc/kernel/cmdline; proxmox-boot-tool refresh; "
        "echo vfio-pci >>$HOMELAB_ROOT/etc/initramfs-tools/modules; update-initramfs -u -k all"
    )
    lab.reboot()


def without_driver(lab: Lab) -> None:
    lab.run("printf 'blacklist nvidia\\nblacklist nvidia-drm\\n' >$HOMELAB_ROOT/etc/modprobe.d/own.conf")
    lab.reboot()


ROWS: dict[str, Row] = {
    # -- VMs
    "a locked VM": Row("bound-by-hand", with_lock("qemu-server/103"), of_vms()),
    "a VM that sleeps": Row(
        "bound-by-hand", all_of(on_host("qm stop 103"), with_lock("qemu-server/103", "suspended")), of_vms()
    ),
    "a card given in one line with another device": Row(
        "bound-by-hand",
        on_host("qm stop 103; qm set 103 --hostpci0 '0000:01:00;0000:06:00,pcie=1,x-vga=1'"),
        of_vms(gpus=[{"gpu": "rtx5090", "takeOver": True}]),
    ),
    "a card that runs in another VM": Row(
        "bound-by-hand", on_host(f"qm stop 103; {SECOND_VM}; qm set 104 --onboot 0; qm start 103"), held_card
    ),
    "a VM that runs without its card": Row(
        "phoenix",
        on_host("sed -i '1i hostpci0: 0000:02:00,pcie=1' $HOMELAB_ROOT/etc/pve/qemu-server/103.conf"),
        of_doctor("vm", "103"),
    ),
    "a VM with a mapping that is gone": Row(
        "phoenix",
        on_host("sed -i '1i hostpci1: mapping=gone,pcie=1' $HOMELAB_ROOT/etc/pve/qemu-server/103.conf"),
        of_doctor("vm", "103"),
    ),
    "a node without a quorum": Row(
        "bound-by-hand",
        without_quorum,
        lambda lab: steps(lambda: client(lab).put("nodes/pve/qemu/103/config", "a change", tags="x")),
    ),
    # -- cards and boot
    "a card that files and words bind": Row(
        "bound-by-hand", nothing, of_gates(gpus={"gpu": {"match": "10de:2b85", "use": "lxc"}}), take_out_ids, reboot
    ),
    "a card that a VM was given by hand": Row(
        "rtx5090",
        all_of(
            on_host(f"qm stop 103; qm set 103 --hostpci0 {BY_HAND}"),
            of_step("apply", vfio("homelab.vfio=0000:01:00.0=10de:2b85")),
        ),
        of_gates(gpus={"gpu": {"match": "10de:2b85", "use": "lxc"}}),
    ),
    "graphics outside the IOMMU": Row(
        "laptop-egpu",
        nothing,
        of_gates(gpus={"gpu": {"match": "8086:9a49", "allowConsole": True}}),
        on_host("sed -i 's/,igfx_off//' $HOMELAB_ROOT/etc/default/grub"),
        reboot,
    ),
    "a card with virtual functions": Row("sriov", nothing, of_gates(gpus={"gpu": {"match": "10de:25b6"}})),
    "vfio-pci that isn't loaded": Row("rtx5090", nothing, verified),
    "a card that words bind, with systemd-boot": Row(
        "intel-zfs",
        bind_by_words,
        of_gates(gpus={"gpu": {"match": "10de:2786", "use": "lxc"}}),
        on_host("sed -i 's/ vfio-pci.ids=[^ ]*//' $HOMELAB_ROOT/etc/kernel/cmdline"),
        reboot,
    ),
    "an ESP that is gone": Row(
        "intel-zfs", on_host("echo AAAA-0000 >>$HOMELAB_ROOT/etc/kernel/proxmox-boot-uuids"), of_doctor("host")
    ),
    "a test VM that was left": Row(
        "bound-by-hand",
        all_of(
            on_host("qm create 900 --name homelab-passthrough-test --memory 64"), fault("task-fails", "qmdestroy=busy")
        ),
        of_step(
            "apply", Asked("passthrough_test", PassthroughTest(functions={"0000:01:00.0": "10de:ffff"}, timeout=1))
        ),
        fault("task-fails", None),
    ),
    "an initramfs that could not be made": Row(
        "rtx5090",
        fault("update-initramfs", "fail"),
        of_step("apply", initramfs()),
        fault("update-initramfs", None),
    ),
    "no command line for systemd-boot": Row(
        "intel-zfs",
        on_host("rm $HOMELAB_ROOT/etc/kernel/cmdline"),
        of_step("apply", IOMMU),
        on_host("echo 'root=ZFS=rpool/ROOT/pve-1 boot=zfs' >$HOMELAB_ROOT/etc/kernel/cmdline"),
    ),
    # -- containers
    "a locked container": Row("phoenix", with_lock("lxc/901"), of_containers),
    "a locked container, for the doctor": Row("phoenix", with_lock("lxc/901"), of_doctor("container", "901")),
    "a locked container, for a step": Row("phoenix", with_lock("lxc/901"), of_step("apply", CARDS)),
    "a container that is off": Row(
        "phoenix",
        on_host("pct stop 901"),
        of_step("read", Asked("read_system", ReadSystem()), ctid=901),
    ),
    "a container that was changed by hand": Row(
        "phoenix",
        append(
            901, "dev0: /dev/nvidia0,mode=0666", "dev1: /dev/nvidiactl,mode=0666", "dev2: /dev/nvidia-uvm,mode=0666"
        ),
        of_step("apply", Asked("container_verification", ContainerVerification(ctid=901, cards=Cards(minors=(0,))))),
    ),
    "a container that runs with an older configuration": Row(
        "phoenix",
        append(
            901, "dev0: /dev/nvidia0,mode=0666", "dev1: /dev/nvidiactl,mode=0666", "dev2: /dev/nvidia-uvm,mode=0666"
        ),
        of_doctor("container", "901", "--gpus", "0"),
    ),
    "a device that is not given": Row("phoenix", nothing, of_doctor("container", "901", "--gpus", "0")),
    "a device for root alone": Row(
        "phoenix",
        all_of(
            on_host(GIVEN[0]),
            on_host("sed -i '/^dev0/s/mode=0666/mode=0660/' $HOMELAB_ROOT/etc/pve/lxc/901.conf; pct reboot 901"),
        ),
        of_doctor("container", "901", "--gpus", "0"),
    ),
    "a device that can't be written": Row(
        "phoenix",
        all_of(
            on_host(GIVEN[0]),
            on_host("sed -i '/^dev0/s/$/,deny-write=1/' $HOMELAB_ROOT/etc/pve/lxc/901.conf; pct reboot 901"),
        ),
        of_doctor("container", "901", "--gpus", "0"),
    ),
    "nodes closed to users": Row(
        "phoenix", on_host("chmod 0660 $HOMELAB_ROOT/dev/nvidia0"), of_doctor("container", "950")
    ),
    "nodes that nothing has made": Row(
        "mixed",
        nothing,
        # Nodes bring no libraries.
        lambda lab: [step for step in of_doctor("container", "201", "--gpus", "1")(lab) if "libraries" not in step],
    ),
    "nodes of an earlier boot": Row(
        "phoenix",
        on_host("rm $HOMELAB_ROOT/dev/nvidia-uvm; mknod -m 0666 $HOMELAB_ROOT/dev/nvidia-uvm c 499 0"),
        of_doctor("container", "950"),
    ),
    # -- the host's driver
    "a driver that isn't loaded": Row("phoenix", without_driver, of_containers),
    "a driver that isn't loaded, for the doctor": Row(
        "phoenix", without_driver, of_doctor("container", "901", "--gpus", "0")
    ),
    "a driver that isn't built": Row(
        "phoenix", all_of(on_host("dkms remove nvidia/580.105.08 -k $(uname -r)"), reboot), of_containers
    ),
}


def test_an_esp_that_is_taken_out_of_the_list_tells_which_boot_loader_it_is(labs: Callable[[str], Lab]) -> None:
    lab = labs("rtx5090")
    said = of_gates(gpus={})
    try:
        lab.run("mkdir -p $HOMELAB_ROOT/etc/kernel && echo 0000-0000 >$HOMELAB_ROOT/etc/kernel/proxmox-boot-uuids")
        assert any("the UUID of each ESP" in step for step in said(lab))
        lab.run("sed -i /0000-0000/d $HOMELAB_ROOT/etc/kernel/proxmox-boot-uuids")
        assert said(lab) == []
    finally:
        lab.reset()


def test_what_a_cluster_says_of_its_votes_is_what_a_real_one_said(labs: Callable[[str], Lab]) -> None:
    recorded = shared("pve_api", "transcripts").glob("*.jsonl")
    said = [
        json.loads(line)["out"]
        for file in sorted(recorded)
        for line in file.read_text(encoding="utf-8").splitlines()
        if '"shell": "pvecm status"' in line and '"note": ' in line
    ]
    lab = labs("bound-by-hand")
    for text in said:
        nodes = {
            f"pve{number}" if number > 1 else "pve": {
                "id": number,
                "online": int(f"10.219.77.{number + 1}" in text),
                "ip": f"10.219.77.{number + 1}",
            }
            for number in (1, 2, 3)
        }
        cluster = {"name": "bench", "version": 3, "quorate": int("Quorate:          Yes" in text)}
        lab.run("cat >$HOMELAB_ROOT/etc/pve/.members", stdin=json.dumps({"cluster": cluster, "nodelist": nodes}))
        done = lab.run("pvecm status", check=False)
        assert done.stdout == re.sub(r"(?m)^(?:Date|Ring ID): .*\n", "", text)
        assert done.returncode == (0 if cluster["quorate"] else 2)
    assert len(said) == 2
    lab.reset()


def row_of(name: str) -> Row:
    if name not in ROWS:
        pytest.fail(f"tests/advice.yaml names {name!r}, and there is no such row")
    return ROWS[name]


def commands(template: str, said: list[str]) -> list[str]:
    """The commands of these messages that are made of a text."""
    return [one for message in said for one in advice.advised(message) if advice.is_made_of(template, one)]


def carry_out(lab: Lab, command: str) -> None:
    """As a person does; what only looks may end as it likes."""
    text = advice.on_the_lab(command)
    for part in re.split(r"&&|\|\||[|;]", command):
        program = part.split()[0]
        path = lab.run(f"type -P {program}").stdout.strip()
        assert program in OF_THIS_MACHINE or path.startswith(str(lab.state)), f"{program} would be this machine's"
    lab.run(text, check=not any(advice.is_made_of(one, command) for one in KNOWN["looks"]))


@pytest.mark.parametrize("name", sampling.sample(sorted({row for _, row in CURES}), 8, "what is advised"))
def test_what_is_advised_cures_what_it_is_given_for(labs: Callable[[str], Lab], name: str) -> None:
    """Each row once, with all that the register has for it; a sample of them by default."""

    def is_run(command: str) -> bool:
        """Is it the command in question, or one that goes with it?"""
        left = [*KNOWN["words"], *KNOWN["unrun"], "pulumi {}", "homelab doctor {}"]
        made_of = [template for template, _ in CURES if template != "{}"]
        return any(advice.is_made_of(one, command) for one in made_of) or not any(
            advice.is_made_of(one, command) for one in left
        )

    row, templates = row_of(name), [template for template, one in CURES if one == name]
    lab = labs(row.scenario)
    try:
        row.broken(lab)
        said = row.says(lab)
        for template in templates:
            assert commands(template, said), f"nothing of the kind of {template!r} is advised: {said}"
        row.first(lab)
        # A message's commands are run in their order.
        for message in said:
            for command in advice.advised(message) if any(commands(one, [message]) for one in templates) else []:
                if is_run(command):
                    carry_out(lab, command)
        row.after(lab)
        now = row.says(lab)
        assert [template for template in templates if commands(template, now)] == []
    finally:
        lab.reset()


def test_no_row_is_left_without_its_command() -> None:
    assert set(ROWS) == {row for _, row in CURES}


@pytest.mark.parametrize(
    "text",
    sampling.sample(
        [text for text in KNOWN["looks"] if not text.startswith(("pvecm", "proxmox-boot-tool status"))],
        12,
        "what is looked at",
    ),
)
def test_what_is_to_be_looked_at_can_be(labs: Callable[[str], Lab], text: str) -> None:
    """Each command that changes nothing; a sample of them by default."""
    lab = labs("phoenix")
    command = KNOWN["looks"][text] or text
    done = lab.run(advice.on_the_lab(command), check=False)
    if "create" in command:
        lab.reset()
    assert done.returncode == 0 or ("| grep" in command and (done.returncode, done.stderr) == (1, "")), done.stderr
