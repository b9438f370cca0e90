"""homelab/host/plan.py: what is wanted, drift from it, the verification, the plan as text."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from homelab.cards import values as card_values
from homelab.facts.host import HostFacts
from homelab.host import plan
from remote_scripts.both.reboot import Reason
from remote_scripts.pve.guest_kinds import Running
from tests.rows import rows
from tests.unit.hosts import cmdline, desktop, device, driven, gpu, settings

WORD = "homelab.vfio=0000:01:00.0=10de:2b85,0000:01:00.1=10de:22e8"


def bound(**changes: Any) -> HostFacts:
    """The desktop after a successful `up`."""
    words = plan.wanted(desktop(), settings()).words
    files = ["/etc/default/grub.d/zz-homelab-vfio.cfg", "/etc/initramfs-tools/scripts/init-top/homelab-vfio"]
    managed = [{"layer": "vfio", "path": path, "state": "ok"} for path in files]
    values: dict[str, Any] = {
        "cmdline": cmdline(f"ro quiet {words}", generated=f"ro quiet {words}", others="quiet"),
        "modules": ["vfio", "vfio_iommu_type1", "vfio_pci"],
        "devices": driven("vfio-pci"),
        "managed": managed,
        "boot_lacks": [],
    }
    return desktop(**(values | changes))


def test_amd_gets_its_word_and_passthrough_mode_and_every_function_is_named() -> None:
    want = plan.wanted(desktop(), settings())
    assert want.iommu_words == "amd_iommu=on iommu=pt"
    assert want.vfio_words.split()[0] == WORD
    assert want.functions == {"0000:01:00.0": "10de:2b85", "0000:01:00.1": "10de:22e8"}


def test_intel_gets_its_word_and_each_word_can_be_switched_off() -> None:
    intel = desktop(cpu_vendor="GenuineIntel")
    assert plan.wanted(intel, settings()).iommu_words == "intel_iommu=on iommu=pt"
    assert plan.wanted(intel, settings(iommu={"passthrough": False})).iommu_words == "intel_iommu=on"
    assert plan.wanted(intel, settings(iommu={"enable": False})).iommu_words == "iommu=pt"


def test_drivers_are_blacklisted_only_when_no_nvidia_card_stays() -> None:
    assert "modprobe.blacklist=nouveau,nvidia" in plan.wanted(desktop(), settings()).vfio_words
    two = desktop(*gpu("0000:03:00", 18))
    assert plan.wanted(two, settings({"gpu": {"address": "01:00"}})).vfio_words == WORD


def by_hand(running: str = "", ids: str = "", driver: str = "vfio-pci", **changes: Any) -> HostFacts:
    devices = [
        device("0000:01:00.0", "10de:2b85", "030000", 16, driver=driver),
        device("0000:01:00.1", "10de:22e8", "040300", 16, driver=driver),
    ]
    files = {"/etc/modprobe.d/vfio.conf": ids} if ids else {}
    return desktop(devices=devices, vfio_files=files, cmdline=cmdline(running, others=running), **changes)


@pytest.mark.parametrize(
    "facts",
    [
        by_hand(running="vfio-pci.ids=10de:2b85,10de:22e8"),
        by_hand(running="quiet vfio_pci.ids=10DE:2B85,10de:22e8"),
        by_hand(ids="10de:2b85,10de:22e8"),
    ],
)
def test_a_binding_made_by_hand_is_recognised_and_taken_over_only_when_asked(facts: HostFacts) -> None:
    want = plan.wanted(facts, settings())
    assert (want.vfio_words, want.by_hand) == ("", ["0000:01:00.0", "0000:01:00.1"])
    assert plan.wanted(facts, settings(takeOver=True)).vfio_words.startswith(WORD)


def test_a_binding_by_hand_that_was_taken_back_makes_the_plan_stale() -> None:
    want = plan.wanted(by_hand(ids="10de:2b85,10de:22e8"), settings())
    assert not plan.stale(by_hand(ids="10de:2b85,10de:22e8"), want)
    assert plan.stale(by_hand(driver="nouveau"), want)
    assert plan.stale(desktop(devices=[]), want)
    assert plan.stale(desktop(devices=[]), plan.wanted(desktop(), settings()))
    assert not plan.stale(bound(), plan.wanted(desktop(), settings()))


def test_of_a_half_made_binding_only_the_rest_is_bound() -> None:
    want = plan.wanted(by_hand(ids="10de:2b85"), settings())
    assert want.vfio_words.startswith("homelab.vfio=0000:01:00.1=10de:22e8 ")


@pytest.mark.parametrize("facts", [by_hand(ids="10de:2b85,10de:22e8", driver="nouveau"), by_hand()])
def test_ids_without_effect_and_a_driver_without_ids_are_no_binding(facts: HostFacts) -> None:
    assert plan.wanted(facts, settings()).by_hand == []


def test_our_own_binding_is_not_taken_for_one_made_by_hand() -> None:
    facts = by_hand(running=f"vfio-pci.ids=10de:2b85,10de:22e8 {WORD}")
    assert plan.wanted(facts, settings()).vfio_words.startswith(WORD)


WORDS = plan.wanted(desktop(), settings()).words
CHANGED = {"layer": "iommu", "path": "/etc/x", "state": "changed"}
NODES = {"layer": "nodes", "path": "/etc/n", "state": "ok"}
OTHER = device("0000:01:00.0", "10de:2684", "030000", 16)


@rows(
    ("changes", "layer", "said"),
    [
        ({"managed": [CHANGED, *asdict(bound())["managed"]]}, "iommu", "/etc/x was changed by hand"),
        *(
            ({"cmdline": cmdline(f"quiet {WORDS}", "quiet")}, layer, "is not on the configured kernel command line")
            for layer in ("iommu", "vfio")
        ),
        (
            {"cmdline": cmdline(f"quiet {WORDS}", generated="ro quiet", others="quiet")},
            "vfio",
            "is not in the generated boot configuration (grub.cfg)",
        ),
        ({"managed": []}, "vfio", "the initramfs script for vfio-pci is not there"),
        ({"stale_initramfs": ["6.14.11-9-pve"]}, "vfio", "the initramfs of 6.14.11-9-pve is older than its script"),
        ({"pending": ["boot"]}, "iommu", "the boot configuration was not made after the last change"),
        ({"pending": ["initramfs"]}, "vfio", "the initramfs was not made after the last change"),
        ({"boot_lacks": ["iommu=pt is no longer wanted"]}, "boot", "iommu=pt is no longer wanted"),
        ({"devices": []}, "vfio", "0000:01:00.0 is not there, not 10de:2b85"),
        ({"devices": [OTHER]}, "vfio", "0000:01:00.0 is 10de:2684, not 10de:2b85"),
        ({"managed": [NODES]}, "nodes", "homelab-nvidia-nodes.service is not enabled"),
        *(({"rolled_back": "boot 1 was not confirmed"}, layer, "boot 1 was") for layer in ("boot", "iommu", "vfio")),
    ],
)
def test_drift_is_named_by_layer(changes: dict[str, Any], layer: str, said: str) -> None:
    found = plan.drift(bound(**changes), plan.wanted(desktop(), settings()))
    assert any(said in sentence for sentence in found[layer]), found


def test_what_another_layer_has_lost_or_never_had_is_no_drift_of_this_one() -> None:
    want = plan.wanted(desktop(), settings())
    managed = [CHANGED, NODES, *asdict(bound())["managed"]]
    found = plan.drift(bound(managed=managed, nvidia={"nodes_enabled": True}), want)
    assert {layer: lines for layer, lines in found.items() if lines} == {"iommu": ["/etc/x was changed by hand"]}


def test_a_card_that_stays_is_not_verified_for_a_vm() -> None:
    host = settings({"gpu": {"match": "10de:2b85", "use": "host"}})
    network = device("0000:05:00.0", "10ec:8125", "020000", 16)
    facts = desktop(network)
    want = plan.wanted(facts, host)
    assert not [*plan.verify(facts, host, want)]
    assert not [*plan.verify(desktop(network, iommu={"tables": [], "groups": 0, "kernel_log": ""}), host, want)]


def test_an_iommu_word_with_more_options_is_the_word() -> None:
    running = "quiet intel_iommu=on,sm_on iommu=pt"
    facts = desktop(cpu_vendor="GenuineIntel", cmdline=cmdline(running, others=running), boot_lacks=[])
    want = plan.wanted(facts, settings({}))
    assert not any(plan.drift(facts, want).values())
    assert "(stays)" in plan.describe("pve", facts, settings({}), want, reboot())


def test_a_word_that_the_kernel_doesnt_know_is_no_reason_for_a_boot() -> None:
    """Its IOMMU is on without amd_iommu=on; who has bound a card by hand needs no restart for it."""
    words = plan.wanted(desktop(), settings()).words
    later = cmdline(f"ro quiet {words.replace('amd_iommu=on ', '')}", f"ro quiet {words}", "quiet", f"ro quiet {words}")
    assert list(plan.verify(bound(cmdline=later), settings(), plan.wanted(desktop(), settings()))) == []


def test_a_bound_host_is_verified() -> None:
    assert not [*plan.verify(bound(), settings(), plan.wanted(desktop(), settings()))]


@rows(
    ("changes", "wanted"),
    [
        ({"cmdline": cmdline("quiet", others="quiet")}, "homelab.vfio="),
        ({"iommu": {"tables": ["DMAR"], "groups": 0, "kernel_log": "DMAR: IOMMU enabled"}}, "IOMMU groups in"),
        ({"modules": ["vfio"]}, "the modules vfio, vfio_iommu_type1 and vfio_pci loaded"),
        ({"devices": asdict(desktop())["devices"]}, "every function on vfio-pci: 0000:01:00.0, 0000:01:00.1"),
        (
            {"devices": [one for one in driven("vfio-pci") if one["address"] != "0000:01:00.1"]},
            "every function on vfio-pci: 0000:01:00.0, 0000:01:00.1",
        ),
        (
            {"devices": [*driven("vfio-pci"), device("0000:05:00.0", "10ec:8125", "020000", 16)]},
            "alone in its IOMMU group",
        ),
    ],
)
def test_the_verification_says_which_check_failed(changes: dict[str, Any], wanted: str) -> None:
    errors = [*plan.verify(bound(**changes), settings(), plan.wanted(desktop(), settings()))]
    assert len(errors) == 1 and wanted in errors[0].wanted, errors


def reboot(decision: Any = "no", reasons: tuple[str, ...] = ()) -> plan.PlannedReboot:
    return plan.PlannedReboot(decision, "1", tuple(map(Reason, reasons)), (Running("qm", 103, "Sandbox"),))


def test_the_plan_tells_people_what_would_happen() -> None:
    facts = desktop()
    files = [
        plan.PlannedFile("new", "/etc/default/grub.d/zz-homelab-iommu.cfg"),
        plan.PlannedFile("made", "/boot/grub/grub.cfg"),
        plan.PlannedFile("changed", "/etc/initramfs-tools/scripts/init-top/homelab-vfio"),
        plan.PlannedFile("made", "/boot/grub/grub.cfg"),
        plan.PlannedFile("removed", "/etc/a"),
        plan.PlannedFile("given back", "/etc/b"),
    ]
    text = plan.describe(
        "pve", facts, settings(), plan.wanted(facts, settings()), reboot("yes", ("iommu=pt is not running",)), files
    )
    for said in (
        "command line: quiet\n             -> quiet amd_iommu=on iommu=pt homelab.vfio=",
        "writes /etc/default/grub.d/zz-homelab-iommu.cfg",
        "changes /etc/initramfs-tools/scripts/init-top/homelab-vfio",
        "removes /etc/a",
        "gives back /etc/b",
        "0000:01:00.0 [10de:2b85] nouveau -> vfio-pci",
        "0000:01:00.1 [10de:22e8] snd_hda_intel -> vfio-pci",
        "IOMMU group 16, with it: nothing else",
        "reboot: one, because iommu=pt is not running; it stops VM 103 (Sandbox), and starts it again",
    ):
        assert said in text, text
    assert text.count("rebuilds /boot/grub/grub.cfg") == 1


def test_the_plan_says_that_a_card_goes_back_to_its_driver() -> None:
    host = settings({"gpu": {"match": "10de:2b85", "use": "lxc"}})
    text = plan.describe("pve", bound(), host, plan.wanted(bound(), host), reboot("yes", ("a",)))
    assert "0000:01:00.0 [10de:2b85] vfio-pci -> the host's driver" in text


def test_the_plan_says_that_a_card_goes_from_nouveau_to_the_driver_that_its_reboot_is_for() -> None:
    host = settings({"gpu": {"match": "10de:2b85", "use": "lxc"}}, nvidia={"driver": "580"})
    why = Reason("0000:01:00.0 is on nouveau", function="0000:01:00.0", driver="NVIDIA's driver")
    needed = replace(reboot("yes"), reasons=(why,))
    text = plan.describe("pve", desktop(), host, plan.wanted(desktop(), host), needed)
    assert "0000:01:00.0 [10de:2b85] nouveau -> NVIDIA's driver\n" in text
    assert "goes to NVIDIA's driver" in text


def test_the_plan_of_a_finished_host_has_nothing_in_it() -> None:
    facts = bound(cmdline=cmdline(f"quiet {WORDS}", others="quiet"))
    text = plan.describe("pve", facts, settings(), plan.wanted(facts, settings()), reboot())
    assert "(stays)" in text and "writes" not in text and "reboot: not needed" in text


@rows(
    ("found", "said"),
    [
        (reboot(), "not needed"),
        (reboot("yes", ("a", "b")), "one, because a, and b; it stops VM 103 (Sandbox), and starts it again"),
        (reboot("manual", ("a",)), "by you (reboot: manual), because a; it stops VM 103 (Sandbox)"),
        (plan.PlannedReboot("yes", "1", (Reason("a"),)), "one, because a; it stops no running guest"),
        (
            plan.PlannedReboot("yes", "1", (Reason("a"),), kernel="6.17.2-1-pve (6.14.11-4-pve runs now)"),
            "one, because a; it stops no running guest; it starts kernel 6.17.2-1-pve (6.14.11-4-pve runs now)",
        ),
    ],
)
def test_the_scripts_decision_about_a_reboot_is_put_into_a_sentence(found: plan.PlannedReboot, said: str) -> None:
    assert found.in_short({}) == said


def test_the_plan_shows_how_a_file_differs_and_of_a_long_one_the_beginning() -> None:
    diff = "--- /etc/a\n+++ /etc/a\n@@ -1 +1 @@\n-quiet\n+quiet amd_iommu=on\n"
    files = [
        plan.PlannedFile("changed", "/etc/a", diff),
        plan.PlannedFile("changed", "/etc/a", diff),
        plan.PlannedFile("new", "/etc/b", "".join(f"+{number}\n" for number in range(50))),
        plan.PlannedFile("made", "/boot/grub/grub.cfg"),
    ]
    want = plan.wanted(desktop(), settings())
    text = plan.describe("pve", desktop(), settings(), want, plan.PlannedReboot("no", "1"), files)
    assert (
        "  changes /etc/a\n      @@ -1 +1 @@\n      -quiet\n      +quiet amd_iommu=on\n  writes /etc/b\n      +0\n"
        in text
    )
    assert text.count("changes /etc/a") == 1
    assert "      … 34 more lines\n  rebuilds /boot/grub/grub.cfg" in text


def test_the_values_of_a_card_are_those_of_each_of_its_functions() -> None:
    host = settings(
        {"gpu": {"match": "10de:2b85", "reset": "flr", "keepAwake": True}, "b": {"address": "0b:00", "use": "host"}}
    )
    functions = plan.wanted(desktop(), host).gpus
    found = card_values.wanted(functions, host.gpus).values
    assert [f"{one.address} {one.id} {one.attribute} {one.value}" for one in found] == [
        "0000:01:00.0 10de:2b85 reset_method flr",
        "0000:01:00.0 10de:2b85 d3cold_allowed 0",
        "0000:01:00.0 10de:2b85 power/control on",
        "0000:01:00.1 10de:22e8 reset_method flr",
        "0000:01:00.1 10de:22e8 d3cold_allowed 0",
        "0000:01:00.1 10de:22e8 power/control on",
    ]
    assert card_values.wanted(functions, settings().gpus).values == ()


def test_a_value_that_was_changed_by_hand_is_drift_of_its_own() -> None:
    facts = desktop(lost_values=["power/control of 0000:01:00.0 is auto, not on"])
    assert plan.drift(facts, plan.wanted(desktop(), settings()))["values"] == facts.lost_values
