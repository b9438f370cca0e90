"""homelab/cards/remapping.py: cards for which the firmware wants a 1:1 mapping, RMRR, interrupts without remapping."""

from __future__ import annotations

from typing import Any

from homelab.cards import remapping
from homelab.cards import remarks as card_remarks
from homelab.facts.host import HostFacts
from homelab.host import gates, plan
from tests.rows import rows
from tests.unit.hosts import cmdline, conf, desktop, settings

REGION = "0x9d800000-0x9fffffff"


def iommu(**changes: Any) -> dict[str, Any]:
    return {"tables": ["IVRS"], "groups": 21, "kernel_log": "", "interrupts": "remapped"} | changes


def held(**changes: Any) -> HostFacts:
    """The card's group has memory that is to be mapped 1:1, as the kernel says."""
    return desktop(**({"iommu": iommu(direct={"16": [REGION]})} | changes))


def errors(facts: HostFacts, **host: Any) -> list[Any]:
    return gates.check(facts, settings(**host))[1]


# -- a 1:1 mapping -------------------------------------------------------------------------------------------------------
def test_a_card_in_a_group_that_the_kernel_holds_to_a_1_to_1_mapping_is_refused() -> None:
    (error,) = errors(held())
    assert error.found == f"the firmware wants memory mapped 1:1 for its IOMMU group: {REGION}"
    assert "Failed to set group container: Invalid argument" in error.why
    assert "update the board's firmware" in error.next and "relaxRmrr" not in error.next


def test_bypassing_the_iommu_or_not_makes_no_difference_to_that() -> None:
    assert len(errors(held(), iommu={"passthrough": False})) == 1
    assert "iommu=pt" in errors(held())[0].why


def test_other_groups_regions_are_none_of_the_cards() -> None:
    assert errors(held(iommu=iommu(direct={"17": [REGION]}))) == []


def test_a_card_that_a_running_vm_has_now_goes_on() -> None:
    guests = {"running": [103], "configs": [conf("vm", 103, "hostpci0: 0000:01:00")]}
    assert errors(held(guests=guests)) == []
    off = guests | {"running": []}
    assert len(errors(held(guests=off))) == 1
    # As qemu-server notes it: one that runs, and one that is being started.
    assert errors(held(guests=off | {"reservations": "0000:01:00.0 103 pid:4711"})) == []
    assert len(errors(held(guests=off | {"reservations": "0000:01:00.0 103 time:1790000000"}))) == 1
    # It runs, with another card of its mapping.
    other = "0000:09:00.0 103 pid:4711"
    assert len(errors(held(guests=guests | {"reservations": other}))) == 1
    assert len(errors(held(guests=guests | {"reservations": f"{other}\n0000:01:00.0 104 time:1790000000"}))) == 1


def test_who_knows_better_says_so() -> None:
    assert errors(held(), gpus={"gpu": {"match": "10de:2b85", "allowDirectMapping": True}}) == []


INTEL: dict[str, Any] = {"cpu_vendor": "GenuineIntel"}


def test_where_an_override_makes_other_groups_the_boot_tells() -> None:
    assert errors(held(), iommu={"acsOverride": "downstream"}) == []


def test_after_the_reboot_it_is_found_as_well() -> None:
    assert gates.VERIFIED[-1] is remapping.one_to_one
    want = plan.wanted(desktop(), settings())
    assert "1:1" in "".join(error.found for error in plan.verify(held(), settings(), want))


# -- RMRR ----------------------------------------------------------------------------------------------------------------
RELAXED = {"relaxRmrr": True}


def test_intels_reserved_memory_is_relaxed_where_the_kernel_can() -> None:
    facts = held(**INTEL)
    (error,) = errors(facts)
    assert "as the last resort iommu.relaxRmrr: true" in error.next
    assert errors(facts, iommu=RELAXED) == []
    assert plan.wanted(facts, settings(iommu=RELAXED)).iommu_words == "intel_iommu=on,relax_rmrr iommu=pt"
    assert "data can be lost" in card_remarks.remarks(facts, settings(iommu=RELAXED), {})[0]
    # Taken away again, it is refused again: the running kernel's word isn't the next one's.
    running = cmdline("intel_iommu=on,relax_rmrr iommu=pt", others="quiet")
    assert len(errors(held(cmdline=running, **INTEL))) == 1
    assert errors(held(cmdline=cmdline("intel_iommu=on,sm_on,relax_rmrr"), **INTEL)) == []  # somebody's own
    # A kernel that doesn't know it holds to the memory, and the way isn't named.
    (error,) = errors(held(cmdline=cmdline("intel_iommu=on,relax_rmrr"), kernel="6.8.0-86-generic", **INTEL))
    assert "relaxRmrr" not in error.next


# -- interrupts ------------------------------------------------------------------------------------------------------------
UNSAFE = {"allowUnsafeInterrupts": True}
PLAIN = iommu(interrupts="plain")


@rows(
    ("facts", "remapped"),
    [
        (desktop(iommu=iommu(interrupts="remapped")), True),
        (desktop(iommu=iommu(interrupts="")), None),
        (desktop(iommu=PLAIN), False),
        # The IOMMU is off: that it is off for interrupts, too, says nothing.
        (desktop(iommu=PLAIN | {"groups": 0}), None),
        (desktop(cmdline=cmdline("quiet intremap=off"), iommu=PLAIN), False),
        (desktop(cmdline=cmdline("quiet", "quiet nointremap")), False),  # from the next boot on
        (desktop(cmdline=cmdline("quiet intremap=off", "quiet"), iommu=PLAIN), None),  # with the next boot no more
    ],
)
def test_whether_interrupts_are_remapped_is_told_where_it_can_be(facts: HostFacts, remapped: bool | None) -> None:
    assert remapping.remaps_interrupts(facts) is remapped
    allowed = remapping.UNSAFE_INTERRUPTS in remapping.words(facts, settings(iommu=UNSAFE)).split()
    assert allowed is (remapped is False)
    wanted = "interrupt remapping by the IOMMU"
    assert (wanted in [one.wanted for one in errors(facts)]) is (remapped is False)
    assert wanted not in [one.wanted for one in errors(facts, iommu=UNSAFE)]


def test_plain_interrupts_are_refused_with_what_makes_them_plain() -> None:
    (error,) = errors(desktop(iommu=PLAIN))
    assert error.found.startswith("none on this host") and error.next.startswith("update the firmware")
    (error,) = errors(desktop(cmdline=cmdline("quiet", "quiet nointremap")))
    assert error.found == "nointremap on the kernel command line" and error.next.startswith("take nointremap out")
    assert errors(desktop(iommu=PLAIN), gpus={"gpu": {"match": "10de:2b85", "use": "lxc"}}) == []


def test_the_plan_says_what_that_risks() -> None:
    (remark,) = card_remarks.remarks(desktop(iommu=PLAIN), settings(iommu=UNSAFE), {})
    assert "only to guests that you trust" in remark
    assert card_remarks.remarks(desktop(), settings(iommu=UNSAFE), {}) == []
    (remark,) = card_remarks.remarks(desktop(iommu=iommu(groups=0, interrupts="")), settings(iommu=UNSAFE), {})
    assert "can't be told before its IOMMU is on; run `pulumi up --refresh`" in remark


def test_who_has_allowed_it_by_hand_keeps_it_and_is_told() -> None:
    word = "vfio_iommu_type1.allow_unsafe_interrupts=1"
    for facts in (desktop(iommu=PLAIN, unsafe_interrupts=True), desktop(iommu=PLAIN, cmdline=cmdline(f"quiet {word}"))):
        assert errors(facts) == [] and word not in remapping.words(facts, settings())
        (remark,) = card_remarks.remarks(facts, settings(), {})
        assert "set by hand, and left as it is" in remark
    # What the module has by this program's own word is no reason to leave the word out.
    ours = desktop(iommu=PLAIN, unsafe_interrupts=True, cmdline=cmdline(f"quiet {word}", others="quiet"))
    assert len(errors(ours)) == 1
