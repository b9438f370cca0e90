"""homelab/symptoms.py: real texts are recognised, and answered with the cause that the system has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from homelab import tables
from homelab.symptoms import SourcedSymptom, packed, recognise, symptoms
from remote_scripts.both.symptoms import Context, Symptom, Target, compiled
from remote_scripts.tools.plain import of_plain, to_plain
from tests.rows import rows

TEXTS: dict[str, list[str]] = tables.read(Path(__file__).parent / "nvidia_texts.yaml")


@rows("row", symptoms(), ids=lambda row: row.name)
def test_an_answer_names_the_system_and_where_it_was_said(row: Symptom) -> None:
    (error,) = recognise(TEXTS[row.name][0], Context(name="vms.gaming"))
    assert error.wanted == row.wanted.format(name="vms.gaming")
    assert error.found.startswith(row.where)


@rows("row", symptoms(), ids=lambda row: row.name)
def test_every_cause_can_be_reached(row: Symptom) -> None:
    text = TEXTS[row.name][0]
    answers = {recognise(text, cause.when)[0].why.partition("{")[0] for cause in row.causes}
    assert len(answers) == len(row.causes)


def test_a_host_gets_rows_as_they_are_and_no_pattern_is_compiled_for_that() -> None:
    """Each run packs them, also one that changes nothing."""
    compiled.cache_clear()
    text = packed()
    assert compiled.cache_info().misses == 0
    rows = of_plain(tuple[Symptom, ...], json.loads(text), "symptoms")
    assert [row.name for row in symptoms() if row.where in {one.where for one in rows}] == [row.name for row in rows]
    assert {row.where for row in symptoms()} > {row.where for row in rows} > {"apt", "dpkg"}


@rows("row", symptoms(), ids=lambda row: row.name)
def test_a_row_has_causes_a_source_with_its_day_and_a_regular_expression(row: SourcedSymptom) -> None:
    assert row.causes and len(row.source) >= 3 and compiled(row.pattern)


def unknown_keys(row: Any, known: Any) -> set[str]:
    """Keys of a row, and of what is in it, that its form doesn't have."""
    if isinstance(row, list):
        return set[str]().union(*map(unknown_keys, row, known))
    if not isinstance(row, dict) or known is None:
        return set()
    below = (unknown_keys(value, known.get(key)) for key, value in row.items())
    return {str(key) for key in row.keys() - known.keys()}.union(*below)


def test_no_key_of_a_row_is_misspelt() -> None:
    """What reads them passes over a key that it doesn't know."""
    table = tables.read(Path(tables.__file__).parent / "nvidia/data/symptoms.yaml")["symptoms"]
    assert unknown_keys(table, to_plain(symptoms())) == set()
    table[0]["causes"][0]["wenn"] = ""
    assert unknown_keys(table, to_plain(symptoms())) == {"wenn"}


def test_an_unrecognised_failure_of_a_card_is_not_told_twice() -> None:
    errors = recognise("NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x23:0x65:1401)\nNo devices were found\n")
    assert [error.found for error in errors] == [
        "kernel log: NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x23:0x65:1401)"
    ]


def test_two_failures_are_told_both() -> None:
    text = "No space left on device\nmodprobe: ERROR: could not insert 'nvidia': Key was rejected by service"
    assert len(recognise(text)) == 2


def test_a_build_that_fails_behind_its_compiler_is_not_blamed_on_the_drivers_age() -> None:
    """What makes the BTF of modules that are compiled already: awk, pahole."""
    dkms = (
        "Error! Bad return status for module build on kernel: 7.0.0-1-cachyos (x86_64)\n"
        "Consult /var/lib/dkms/nvidia/590.48.01/build/make.log for more information.\n"
    )
    place = "build/scripts/Makefile.modfinal:60: nvidia-drm.ko"
    for log in (
        f"awk: cmd. line:1: ^ invalid char ''' in expression\nmake[5]: *** [/usr/lib/modules/7.0.0/{place}] Error 1",
        f"/bin/sh: 1: /var/lib/dkms/nvidia/595.71.05/build/pahole.sh: Permission denied\nmake[4]: *** [{place}] Error 126",
    ):
        (error,) = recognise(dkms + log)
        assert "isn't recognised" in error.why and error.next.startswith("boot the kernel before")
    (error,) = recognise(
        f"{dkms}/var/lib/dkms/nvidia/590.48.01/build/nvidia/nv-dmabuf.c:844:9: error: too few arguments"
    )
    assert "older than the kernel" in error.why


def test_a_kernel_without_all_of_its_parts_is_no_other_kernel() -> None:
    symbol = "nvidia_drm: Unknown symbol drm_fbdev_ttm_driver_fbdev_probe (err -2)"
    (error,) = recognise(f"modprobe: ERROR: could not insert 'nvidia_drm': Unknown symbol in module, or …\n{symbol}")
    assert "a part of the kernel isn't installed" in error.why and "linux-modules-extra-" in error.next
    (error,) = recognise(symbol.replace("drm_fbdev_ttm_driver_fbdev_probe", "radix_tree_preloads"))
    assert "built for another kernel" in error.why


def test_the_same_text_has_another_cause_in_a_container() -> None:
    text = "Failed to initialize NVML: Driver/library version mismatch"
    inside = recognise(text, Context(target="lxc", host_driver="580.105.08"))[0]
    outside = recognise(text, Context(target="vm"))[0]
    assert "580.105.08" in inside.why and "pulumi up --refresh" in inside.next
    assert "stayed loaded" in outside.why


@rows(
    ("text", "target", "known", "words"),
    [
        ("NVRM: Xid (PCI:0000:01:00): 79, x", "host", "narrow-link", ("its seat, its slot or a riser", "put the card")),
        ("NVRM: Xid (PCI:0000:01:00): 79, x", "host", "", ("temperature", "take another release of the driver")),
        (TEXTS["version-mismatch"][-1], "host", "own-libraries", ("those of a container", "no restart of the host")),
        (TEXTS["version-mismatch"][-1], "host", "", ("stayed loaded", "reboot it")),
        (TEXTS["cards-unresolved"][-1], "vm", "specification", ("the engine doesn't know it", "restart that engine")),
        (TEXTS["cards-unresolved"][-1], "vm", "", ("there is no CDI specification", "nvidia-ctk cdi list")),
    ],
)
def test_the_cure_is_that_of_what_is_known(text: str, target: Target, known: str, words: tuple[str, ...]) -> None:
    (error,) = recognise(text, Context(target=target, known=known or None))
    assert all(word in f"{error.why}; {error.next}" for word in words), str(error)
    assert known != "narrow-link" or "release of the driver" not in error.next
    assert known != "own-libraries" or "reboot" not in error.next


def test_no_devices_with_the_wrong_modules_is_told_as_that() -> None:
    error = recognise("No devices were found", Context(needs_open=True, flavour="proprietary"))[0]
    assert "open ones alone" in error.why and "nvidia.flavour" in error.next


def test_an_xid_is_told_by_its_number_unless_another_explains_it() -> None:
    fault = "NVRM: Xid (PCI:0000:01:00): {}, x"
    for numbers, told in (
        ([31], ["Xid 31"]),
        ([31, 79], ["the card doesn't answer any more (what Xid 79 means)"]),
        ([79, 45, 62], ["the card doesn't answer any more (what Xid 79 means)"]),
        ([119, 95], ["an uncorrectable error in the card's own memory (ECC)"]),
    ):
        errors = recognise("\n".join(map(fault.format, numbers)))
        assert [error.why.split(":")[0] for error in errors] == told


def test_on_a_machine_of_its_own_no_fault_is_blamed_on_passthrough() -> None:
    for name in ("fallen-off-the-bus", "gsp-timeout", "not-reset", "gsp-not-started", "memory-broken"):
        for text in TEXTS[name]:
            (error,) = recognise(text, Context(target="host"))
            assert not re.search(r"\bVMs?\b|guest|FLR|vfio", f"{error.why} {error.next}")


@rows("row", [row for row in symptoms() if any(cause.when.target for cause in row.causes)], ids=lambda row: row.name)
def test_a_text_that_comes_from_nobody_knows_where_is_answered_for_both_places(row: Symptom) -> None:
    """As `homelab doctor log -` has it: for a container or a VM, and for the system that has the driver."""
    (error,) = recognise(TEXTS[row.name][0], Context())
    told, places = f"{error.why} {error.next}", {cause.when.target for cause in row.causes}
    word = r"\bcontainer|where the program runs" if "lxc" in places else r"\bVM\b|Proxmox VE's"
    assert re.search(word, told)


def test_a_long_line_is_cut() -> None:
    assert len(recognise("No space left on device " + "x" * 5000)[0].found) < 300
