"""Every text of every table is answered in the same way however it was printed: homelab/messages.py, and what searches its messages."""

from __future__ import annotations

import argparse
import datetime
import functools
import io
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from docs.tables.nvidia import pages
from homelab import tables
from homelab.cli import log
from homelab.facts import kernel_log
from homelab.facts.kernel_log import Sign, StartSign, signs, start_signs
from homelab.host.judge import troubles
from homelab.messages import Log, messages
from homelab.symptoms import SourcedSymptom, recognise, symptoms
from remote_scripts.both.symptoms import Context, compiled
from tests import sampling
from tests.conftest import shared
from tests.rows import rows
from tests.unit.hosts import desktop, driven, settings
from tests.unit.test_doctor import diagnose_host, diagnose_vm, reading, with_vm
from tests.unit.test_kernel_log import CARD, HEALTHY, names

FOLDER = Path(__file__).parent


@functools.cache
def texts_of(table: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = tables.read(FOLDER / f"{table}_texts.yaml")
    return found


# -- who answers: the names of the rows, in the order in which they are told ---------------------------------------------------------
TABLES: dict[str, Sequence[SourcedSymptom | Sign | StartSign]] = {
    "nvidia": symptoms(),
    "kernel": signs(),
    "start": start_signs(),
}


def of_symptoms(text: str) -> list[str]:
    return [error.symptom for error in recognise(text, Context("x"))]


def of_all(text: str) -> list[str]:
    """As any program's output: in `homelab doctor log`, and in the log of a guest's start."""
    return [one.error.symptom for one in kernel_log.of_text(text, Context("x"))]


ASKED: dict[str, Callable[[str], list[str]]] = {
    "nvidia": of_symptoms,
    "kernel": lambda text: names(desktop(kernel_log=text)),
    "start": of_all,
}

# -- how it was printed -------------------------------------------------------------------------------------------------------------
STAMPS = {
    "dmesg": "[   12.345678] ",
    "dmesg with callers": "[   12.345678] [  T1234] ",
    "journalctl": "[   12.345678] host kernel: ",
}
OTHERS = (
    "usb 1-1: new high-speed USB device number 3 using xhci_hcd",
    "vfio-pci 0000:05:00.0: enabling device (0000 -> 0003)",
    "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  595.84  Wed Oct 11 10:20:43 UTC 2026",
)


def printed(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each way in which a text may have been printed in the middle of a log, and all lines then."""
    lines = text.splitlines()
    yield "as it is", lines
    for name, stamp in STAMPS.items():
        stamped, others = [stamp + line for line in lines], [stamp + other for other in OTHERS]
        yield name, [*others, *stamped, *others]
        yield f"{name}, one message", [*others, stamped[0], *(" " * len(stamp) + line for line in lines[1:]), *others]
        yield f"{name}, among others", [line for one in stamped for line in (one, *others)]


@rows(
    ("table", "name", "text"),
    [(table, name, text) for table in ASKED for name, texts in texts_of(table).items() for text in texts],
)
def test_a_text_has_the_same_answer_however_it_was_printed(table: str, name: str, text: str) -> None:
    def wrapped(line: str, longest: int = 80) -> list[str]:
        """As a narrow window wraps it, at its blanks."""
        parts, rest = [], line
        while len(rest) > longest and " " in rest[1:longest]:
            end = rest.rindex(" ", 1, longest)
            parts.append(rest[:end])
            rest = rest[end + 1 :]
        return [*parts, rest]

    # Only what is printed through the kernel's log has lines of others between its own.
    mixed = table == "kernel" or "NVRM:" in text
    ways = {how: "\n".join(lines) for how, lines in printed(text) if mixed or not how.endswith("among others")}
    if table != "kernel":  # whose lines the host's grep passes on
        ways["wrapped"] = "\n".join(part for line in text.splitlines() for part in wrapped(line))
    # Each way is tried with many texts.
    tried = {"as it is", *sampling.sample([*ways], 3, text)}
    asked = (ASKED[table], of_all)
    assert {how: found for how in tried for ask in asked if (found := ask(ways[how])) != [name]} == {}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_a_real_text_and_every_text_a_row(table: str) -> None:
    assert sorted(texts_of(table)) == sorted(row.name for row in TABLES[table])


@pytest.mark.parametrize("table", TABLES)
def test_the_pages_print_each_row_with_its_source_and_the_day_on_which_it_was_last_seen_true(table: str) -> None:
    text = "\n".join(pages().values())
    printed_not = [row.name for row in TABLES[table] if f" *Seen {row.seen}: {row.source}*\n" not in text]
    days = [datetime.date.fromisoformat(str(row.seen)) for row in TABLES[table]]
    assert printed_not == [] and datetime.date(2026, 11, 1) < min(days)


def test_rows_of_all_tables_have_names_of_their_own_and_hide_others_alone() -> None:
    every = [row.name for table in TABLES.values() for row in table]
    assert sorted(every) == sorted({*every})
    assert all({*row.hides} <= {*every} - {row.name} for table in TABLES.values() for row in table)


def test_no_row_has_the_text_of_another_one_that_does_not_name_it() -> None:
    """Of all three tables, and also where a third row hides it: only what a row hides may be in its text, too."""
    every = [row for table in TABLES.values() for row in table]
    stolen = {
        (row.name, thief.name): text
        for table, rows_of in TABLES.items()
        for row in rows_of
        for text in texts_of(table)[row.name]
        for thief in every
        if thief is not row and thief.name not in row.hides
        if all(compiled(part).search(Log(text).text) for part in (thief.pattern, getattr(thief, "after", None)) if part)
    }
    assert stolen == {}


@pytest.mark.parametrize("table", ["nvidia", "kernel"])
def test_the_hosts_grep_leaves_no_half_of_a_message(table: str) -> None:
    ways = [
        lines
        for texts in texts_of(table).values()
        for text in texts
        if table == "kernel" or "NVRM:" in text
        for how, lines in printed(text)
        if how in ("dmesg", "journalctl", "dmesg, one message", "journalctl, one message")
    ]
    log = "\n".join(line for lines in ways for line in lines)
    done = subprocess.run(["grep", "-iE", kernel_log.filter_of_lines()], input=log, text=True, capture_output=True)
    kept = set(done.stdout.splitlines())
    for lines in ways:
        passed = [line for line in lines if line in kept]
        assert [line for line in lines if "NVRM:" in line and line not in kept] == []
        assert ASKED[table]("\n".join(passed)) == ASKED[table]("\n".join(lines))


# -- whose it is --------------------------------------------------------------------------------------------------------------------
MINE = "0000:01:00"
OTHER = "0000:02:00"


def about(lines: Sequence[str], **changes: object) -> list[str]:
    facts = desktop(kernel_log="\n".join(lines), **changes)
    told = kernel_log.troubles(facts, "x", {"x": CARD}, with_host=False)
    return of_symptoms("\n".join(one.error.found for one in told))


@rows("stamp", ["", *STAMPS.values()])
def test_a_sentence_of_several_lines_is_about_the_card_it_begins_with(stamp: str) -> None:
    needs_open = (
        "NVRM: The NVIDIA GPU {}.0 (PCI ID: 10de:2b85)",
        "NVRM: installed in this system requires use of the NVIDIA open kernel modules.",
    )
    mine, others = ([stamp + line.format(card) for line in needs_open] for card in (MINE, OTHER))
    fault = stamp + f"NVRM: Xid (PCI:{MINE}): 79, GPU has fallen off the bus."
    assert about([*others, fault]) == ["fallen-off-the-bus"]
    assert about([others[0], fault, others[1]]) == ["fallen-off-the-bus"]
    assert about([*mine, *others]) == about([*others, *mine]) == ["needs-open-modules"]
    assert about([*mine[:1], stamp + OTHERS[0], *mine[1:], *others]) == ["needs-open-modules"]


def test_a_domain_of_eight_digits_names_the_same_card() -> None:
    assert about(["NVRM: Xid (PCI:00000000:01:00): 79, GPU has fallen off the bus."]) == ["fallen-off-the-bus"]
    assert about(["NVRM: Xid (PCI:00000000:02:00): 79, GPU has fallen off the bus."]) == []


def test_that_the_driver_has_not_got_one_card_says_nothing_of_others() -> None:
    lines = texts_of("nvidia")["another-driver"][0].splitlines()
    assert [row.unless for row in symptoms() if row.name == "another-driver"] != [()]
    assert about(lines) == ["another-driver"]  # the card is on nouveau
    for driver in ("nvidia", "vfio-pci"):
        seen = desktop(kernel_log="\n".join(texts_of("nvidia")["another-driver"]), devices=driven(driver))
        assert troubles(seen, {MINE: MINE}) == []
        # The host's other card, with amdgpu, is asked as well: it is none of NVIDIA's driver's.
        assert not any("NVRM" in one.found for one in diagnose_host(reading(facts=seen), settings({})).findings)


def test_a_host_is_not_well_while_its_kernel_tells_of_a_card_that_the_settings_do_not_have() -> None:
    line = texts_of("kernel")["amdgpu-hangs"][0].replace(":01:", ":0b:")
    report = diagnose_host(reading(facts=desktop(kernel_log=line)), settings({}))
    (finding,) = report.findings
    assert "ring gfx_0.0.0 timeout" in finding.found and finding.wanted.startswith("0000:0b:00: ")


def test_a_module_that_the_kernel_rejects_is_another_one_where_nvidias_has_the_card() -> None:
    text = texts_of("nvidia")["key-rejected"][-2]
    told = {
        driver: [error.wanted for error in recognise(text, Context("x", bound=driver))] for driver in ("", "nvidia")
    }
    assert told == {"": ["x: a kernel that takes the driver's modules"], "nvidia": []}


# -- what looks bad and isn't -------------------------------------------------------------------------------------------------------
@rows(
    "text",
    [
        *HEALTHY,
        "nvidia: module verification failed: signature and/or required key missing - tainting kernel\n"
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  525.147.01  Wed Oct 11 10:20:43 UTC 2023",
        "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)",
        "NVRM: Xid (PCI:0000:01:00): 45, pid=4711, name=python, Ch 00000008",
        "AMD-Vi: Unknown option - 'on'",
        "BAR 5: no space for [io  size 0x0080]",
        "amdgpu 0000:01:00.0: BAR 0 [mem size 0x400000000 64bit pref]: can't assign; no space",
        "vfio-pci 0000:01:00.0: BAR 0: no space for [mem size 0x400000000 64bit pref]",
        "pci 0000:01:00.0: ROM [mem size 0x00080000 pref]: failed to assign",
        "nvidia 0000:01:00.0: VF BAR 0 [mem size 0x00040000 64bit pref]: can't assign; no space",
        "pcieport 0000:00:01.1: bridge window [mem size 0x100000000 64bit pref]: can't assign; no space",
        "nvidia 0000:01:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)",
        "DMAR-IR: x2apic is disabled because BIOS sets x2apic opt out bit.",
        "nvidia-nvswitch3: SXid (PCI:0000:8a:00.0): 12028, Non-fatal, Link 40 egress non-posted PRIV error (First)",
        "NVRM cpuidInfoAMD: Unrecognized AMD processor in cpuidInfoAMD",
        "Warning: https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/InRelease: Policy will reject "
        "signature within a year, see --audit for details",
        "WARNING: Unable to find a suitable destination to install 32-bit compatibility libraries.",
        "kvm: -device vfio-pci,host=0000:00:02.0,id=hostpci0: info: OpRegion detected on Intel display 7d55.",
        "hookscript error for 110 on post-start: command '/var/lib/vz/snippets/x.sh 110 post-start' failed: exit code 1",
        "nouveau 0000:01:00.0: Direct firmware load for nvidia/tu117/gsp/gsp-535.113.01.bin failed with error -2",
        "nouveau 0000:01:00.0: pmu: firmware unavailable\nnouveau 0000:01:00.0: fb: VPR locked, but no scrubber binary!",
        "modprobe: ERROR: could not insert 'r8126': Key was rejected by service",
        "NVRM: GPU0 nvAssertFailedNoLog: Assertion failed: PRH failed to update thermal limit! @ platform_request_handler_ctrl.c:2174",
        "nvidia-modeset: WARNING: GPU:0: Unable to read EDID for display device Dell AW2725DM (DP-2)",
        "pcieport 0000:00:01.1: unlocked secondary bus reset via: pciehp_reset_slot+0x98/0x140",
        "{34202}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 4\n"
        "{34202}[Hardware Error]: It has been corrected by h/w and requires no further action",
        # runc's own, of a device without any card: https://github.com/jlesage/docker-freefilesync/issues/11
        "docker: Error response from daemon: runc create failed: unable to start container process: error during "
        'container init: error setting cgroup config for procHooks process: failed to write "c 10:200 rwm": write '
        "/sys/fs/cgroup/devices/docker/89b35b9dbd46/devices.allow: operation not permitted: unknown.",
        "qemu-kvm: warning: IOMMU_IOAS_MAP failed: Bad address, PCI BAR?\n"
        "qemu-kvm: vfio_container_dma_map(0x555558282db0, 0x8800010000, 0x4000, 0x7ffff7ff0000) = -14 (Bad address)",
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.105.08",
        "GPU 0: NVIDIA GeForce RTX 5090 (UUID: GPU-0b11d014)",
        "nvidia/580.105.08, 6.17.13-2-pve, x86_64: installed",
        "Setting up nvidia-dkms-580-open (580.105.08-1ubuntu1) ...",
    ],
)
def test_what_is_no_failure_has_no_answer_however_it_was_printed(text: str) -> None:
    as_it_is, *others = printed(text)
    for _, lines in (as_it_is, *sampling.sample(others, 3, text)):
        for asked in ASKED.values():
            assert asked("\n".join(lines)) == []


@pytest.mark.parametrize("row", [row for row in signs() if row.harmless], ids=lambda row: row.name)
def test_what_is_harmless_is_a_remark_of_the_doctor_and_stops_nobody(row: Sign) -> None:
    for text in texts_of("kernel")[row.name]:
        facts = desktop(kernel_log=text)
        (trouble,) = [*kernel_log.of_card(facts, "x", CARD), *kernel_log.of_host(facts, "x")]
        assert trouble.harmless and not trouble.stops
        assert kernel_log.of_iommu([text]) == []
        assert [(one.remark, one.harmless) for one in troubles(facts, {MINE: MINE}, "")] == [(trouble.remark, True)]


# -- several at once ----------------------------------------------------------------------------------------------------------------
def test_a_cause_hides_what_follows_from_it_wherever_that_stands() -> None:
    for row in symptoms():
        for text in texts_of("nvidia")[row.name]:
            for echo in row.hides:
                for other in texts_of("nvidia")[echo]:
                    assert of_symptoms(f"{other}\n{text}")[:1] == [row.name], (row.name, other)


def test_what_a_harmless_cause_explains_is_one_finding_with_it() -> None:
    lines = texts_of("kernel")["link-errors"][0], "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
    facts = desktop(kernel_log="\n".join(lines))
    (trouble,) = kernel_log.troubles(facts, "pve", {"x": CARD}, with_host=True)
    assert trouble.error.symptom == "link-errors" and not trouble.harmless
    assert "Data Link Layer" in trouble.error.found and "Xid (PCI:0000:01:00): 79" in trouble.error.found


@rows(
    ("lines", "told"),
    [
        # a reset that gives up, and what the kernel and QEMU say after it
        (["not-ready", "reset-failed", "reset-from-inside", "pending-transaction", "link-inactive"], "not-ready"),
        (["not-ready", "invalidation-timeout", "bus-error", "memory-not-mapped"], "not-ready"),
        # a card that has gone from the bus, and its link
        (["link-down", "inaccessible", "lost", "link-inactive"], "link-down"),
        (["bus-fatal", "link-down", "bus-error", "not-ready", "inaccessible"], "bus-fatal"),
        (["inaccessible", "lost", "reset-failed"], "inaccessible"),
        (["lost"], "lost"),
    ],
)
def test_one_cause_is_one_finding_with_all_that_it_left_in_the_log(lines: list[str], told: str) -> None:
    said = [texts_of("kernel")[name][0] for name in lines]
    fault = "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
    for order in (said, said[::-1]):
        facts = desktop(kernel_log="\n".join([*order, fault]), lost=["0000:01:00.0"])
        (trouble,) = kernel_log.troubles(facts, "pve", {"x": CARD}, with_host=True)
        assert trouble.error.symptom == told and trouble.stops and trouble.lasts
        assert all(line.splitlines()[0] in trouble.error.found for line in (*said, fault, "every bit is one"))


def test_a_slow_reset_is_waited_for_before_anybody_switches_the_host_off() -> None:
    (row,) = (row for row in signs() if row.name == "not-ready")
    assert (
        row.next.index("wait three minutes") < row.next.index("another reset") < row.next.index("switch the host off")
    )


def test_a_warning_in_a_drivers_function_is_no_oops() -> None:
    warning = (
        "WARNING: CPU: 3 PID: 99 at drivers/gpu/drm/amd/amdgpu/x.c:1 f+0x1/0x2 [amdgpu]\nRIP: 0010:f+0x1/0x2 [amdgpu]"
    )
    assert names(desktop(kernel_log=warning)) == []


# -- the messages themselves --------------------------------------------------------------------------------------------------------
def test_what_is_printed_is_kept_for_whoever_looks_for_it() -> None:
    text = "[    5.559842] NVRM: The NVIDIA GPU 0000:02:00.0 (PCI ID: 10de:2c58)\n               NVRM: installed in this  system"
    (message,) = messages(text)
    assert message.raw == [line.strip() for line in text.splitlines()]
    assert message.text == "NVRM: The NVIDIA GPU 0000:02:00.0 (PCI ID: 10de:2c58) installed in this system"


@rows(
    ("line", "said"),
    [
        ("Setting up nvidia-dkms-580-open (580.105.08-1ubuntu1) ...", None),
        ("kernel: 6.17.9-generic (x86_64)", None),
        ("[[gpu]]", None),
        ("[drm] Initialized i915", None),
        ("\x1b[32m[   12.345678] \x1b[0m\x1b[33mNVRM\x1b[0m: x", "NVRM: x"),
        ("[   12.345678] [    C0] NVRM: x", "NVRM: x"),
        ("[   12.345678] my-host.lan kernel: x: y", "x: y"),
    ],
)  # fmt: skip
def test_of_a_line_only_what_was_added_goes(line: str, said: str | None) -> None:
    assert [message.text for message in messages(line)] == [said or line]


@rows(
    "part",
    ["Xid (\n", "vfio-pci ", "vfio-pci \n  ", "pciehp: Slot(", "not ready 1ms after x", "make: *** [/linux-headers-"],
)
def test_no_text_keeps_a_search_busy(part: str) -> None:
    text = f"[   12.345678] vfio-pci {MINE}: {part * (50_000 // len(part))}"
    began = time.process_time()
    assert {name: asked(text) for name, asked in ASKED.items()} == {"nvidia": [], "kernel": [], "start": []}
    assert time.process_time() - began < 2


def test_a_pattern_keeps_its_sets_and_repeated_blanks() -> None:
    assert compiled(r"a b[ x] ( *)$\ c").pattern == r"a\s+b[ x]\s+( *)$\ c"


# -- texts of real owners, by every voice ---
#: The row that tells a text; whether the kernel says it; words of what to do.
OWNERS = {
    "bad-address": ("memory-not-mapped", True, "boot a later kernel"),
    "driver-oops": ("amdgpu-hmm-oops", True, "reboot the host"),
    "link-width": ("link-errors", True, "seat the card anew"),
    "pin-255": ("interrupt-pin", False, "in containers"),
    "privilege-change": ("privilege-change", False, "use CDI"),
    "reset-not-owned": ("reset-not-owned", False, "give the VM the functions that stay"),
    "snapshot-with-memory": ("not-migratable", False, "without the memory"),
    "usb-mapping": ("usb-mapping", False, "connect it"),
    "uvm-not-installed": ("uvm-not-installed", False, "without that option"),
}


@pytest.mark.parametrize(("file", "row", "of_kernel", "words"), [(file, *told) for file, told in OWNERS.items()])
def test_host_guest_and_log_tell_an_owners_text_by_one_row(
    monkeypatch: pytest.MonkeyPatch, file: str, row: str, of_kernel: bool, words: str
) -> None:
    posted = shared("cases6", "texts", f"{file}.txt").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in posted if not line.startswith("# ")).replace("0000:83:00", MINE)
    assert of_all(text) == [row]
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert words in log.read(argparse.Namespace(system="-"))
    (told,) = kernel_log.of_text(text, Context("x"))
    starts = reading(failed_starts={"103": text})
    guest = diagnose_vm(replace(with_vm(), extra=starts.extra))
    (finding,) = [one for one in guest.findings if one.wanted == "VM 103 (Sandbox) started"]
    assert (words in finding.next) is not told.harmless
    if of_kernel:
        facts = desktop(kernel_log=text)
        (host,) = [
            one for one in diagnose_host(reading(facts=facts), settings()).findings if "kernel says" in one.found
        ]
        assert words in host.next


def test_what_is_not_recognised_says_so_with_its_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"line {number} of something new" for number in range(30)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    said = log.read(argparse.Namespace(system="-"))
    guest = diagnose_vm(replace(with_vm(), extra=reading(failed_starts={"103": "\n".join(lines)}).extra))
    (finding,) = [one for one in guest.findings if one.wanted == "VM 103 (Sandbox) started"]
    for text in (said, f"{finding.found} {finding.why}"):
        assert "doesn't recognise it" in text and all(line in text for line in lines[-4:]) and lines[0] not in text


# -- failures of real owners --------------------------------------------------------------------------------------------------------
#: What the answer must say, or None where nothing is wrong.
FAILURES = {
    "cdi-podman49-toolkit120-unknown-field": "additionalGids",
    "gsp-firmware-missing": "firmware of the driver's very version",
    "lxc-docker-runc-1.3.3-apparmor": "AppArmor",
    "module-verification-failed-but-loaded": None,
    "pascal-on-595-ignored-legacy-580": "dropped the card's generation",
    "reset-write-inappropriate-ioctl-benign": None,
}


@pytest.mark.parametrize(("name", "words"), FAILURES.items())
def test_the_failures_of_real_owners_are_answered(name: str, words: str | None) -> None:
    posted = shared("failures", f"{name}.txt").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in posted if not line.startswith(("SOURCE:", "CAUSE:")))
    for _, lines in printed(text):
        whole = "\n".join(lines)
        said = [one.error for one in kernel_log.of_text(whole, Context("x")) if not one.harmless]
        assert names(desktop(kernel_log=whole)) == []
        assert [words in f"{one.why} {one.next}" for one in said if words] == ([True] if words else [])
        assert bool(said) is bool(words)
