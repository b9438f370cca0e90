"""Every script as it is sent, and every file that it installs, through shellcheck and shfmt; and no path without its prefix."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from homelab.remote import scripts
from tests import sampling
from tests.conftest import PROJECT

# Beside the interpreter: the linters come as wheels.
TOOLS = Path(sys.executable).parent

# Arguments as the headers list them; the files among them are linted by themselves.
ARGUMENTS = {
    "cmdline.sh": ("NAME", "WORDS", "ENTRY", "MENU", "ENTRY_GRUB", "ENTRY_SYSTEMD_BOOT", "NOTICE", "ROLLBACK_AFTER", "ROLLBACK"),
    "vfio_initramfs.sh": ("NEEDED", "INIT_TOP", "HOOK", "ROLLBACK_AFTER", "ROLLBACK"),
    "reboot_host.sh": ("POLICY", "WORDS", "FUNCTIONS", "DRIVER", "FLAVOUR", "SOURCE", "ROLLBACK_AFTER", "ROLLBACK", "AWAITED", "QUORUM", "HA_MODE", "TURN_END"),
    "rollback.sh": ("ROLLBACK_AFTER", "ENTRY_SYSTEMD_BOOT"),
    "read_host.sh": ("GUESTS", "LSPCI", "ACS", "SIGNS", "SYSTEMS", "READ_SYSTEM"),
    "confirm_boot.sh": ("LOCK_TIMEOUT", "UNLESS", "JUDGED_TOLD"),
    "cluster_turn.sh": ("LOCK_TIMEOUT", "OVER_SECONDS", "RETURN_SECONDS", "NODE"),
    "read_log.sh": ("LINES",),
    "kept_scripts.sh": ("OWNER", "CONTENT"),
    "ledger.sh": ("NAME", "NOTE", "KEEP"),
    "start_log.sh": ("VMID", "SINCE", "BOOT", "OURS", "OFF"),
    "storage_file.sh": ("URL", "VOLUME"),
    "read_packages.sh": (),
    "nvidia_nodes.sh": ("NEEDED", "NODES", "UNIT"),
    "card_nodes.sh": ("NEEDED", "PROGRAM", "UNIT"),
    "card_nodes_boot.sh": ("WAIT", "QUORUM"),
    "container_gpus.sh": ("CTID", "METHOD", "MINORS", "FUNCTIONS", "CARDS", "TIMEOUT", "OTHERWISE", "KEEP", "GUEST"),
    "container_record.sh": ("CTID", "NOTES"),
    "container_restart.sh": ("CTID", "METHOD", "MINORS", "FUNCTIONS", "CARDS", "TIMEOUT", "OTHERWISE", "POWER"),
    "container_verification.sh": ("CTID", "METHOD", "MINORS", "FUNCTIONS", "CARDS", "USES"),
    "card_libraries.sh": ("CHOICES",),
    "card_values.sh": ("VALUES",),
    "handover.sh": ("NEEDED", "PROGRAM", "UNIT", "TIMER", "HOOK"),
    "handover_hook.sh": ("VMID", "HOLDER"),
    "handover_host.sh": ("CARDS",),
    "rehearse_card.sh": ("CARDS", "CARD_NAME", "VMID"),
    "switch_card.sh": ("CARD", "VMID", "SECONDS_OFF", "CUT", "FROM"),
    "card_rom.sh": ("ADDRESS", "IDS", "FROM", "MOST", "FILE", "ROM"),
    "diagnose.sh": ("IDS", "INSIDE"),
    "passthrough_test.sh": ("FUNCTIONS", "VMID", "TIMEOUT", "NAME", "FOLDER", "INIT"),
    "reboot_guest.sh": (),
    "run_guard.sh": ("WHO", "VMID"),
    "read_system.sh": ("ASK", "PASSED", "STAYING", "RELEASED"),
    "in_container.sh": ("CTID", "SCRIPT"),
    "nvidia_repository.sh": ("PREREQUISITES", "REPOSITORIES", "APT_FILES", "ASK"),
    "nvidia_driver.sh": (
        "TARGET", "DRIVER", "FLAVOUR", "SOURCE", "PREREQUISITES", "PACKAGES", "RECOMMENDS", "RUN_VERSION", "RUN_URL", "RUN_SHA256", "RUN_UNPINNED",
        "RUN_PREREQUISITES", "RUN_ARGUMENTS", "PERSISTENCE", "AWAITED",
    ),
    "driver_update.sh": ("TARGET", "CONTAINERS"),
    "cuda_toolkit.sh": ("PACKAGES", "RELEASE", "NVCC"),
    "container_toolkit.sh": (
        "TARGET", "RUNTIME", "PACKAGES", "INSTALL", "CONFIGURE", "RESTART", "NO_CGROUPS", "CDI", "DRIVER",
    ),
    "nvidia_verification.sh": ("NVCC", "PROGRAM", "ENGINE", "IMAGE", "CDI", "UVM", "KERNEL_LOG", "TIMEOUT", "PROXY"),
}  # fmt: skip
# Of a part of the library; its header names them.
OF_PACKAGES = ("NAME", "SYMPTOMS", "PROXY", "LOCK_SECONDS", "DOWNLOAD_SECONDS", "INSTALL_SECONDS", "LOCKED")
INSTALLED = sorted((scripts.FOLDER / "files").glob("*.sh"))
SOURCES = sorted(scripts.FOLDER.rglob("*.sh"))
# What runs in the metal tier's hosts.
METAL = sorted((PROJECT / "tests" / "metal" / "guest").iterdir())

# SC2329/SC2317: functions of the library that this script doesn't call. SC2034: variables that it doesn't read.
# SC2153, SC2154: what arguments assign. SC2119, SC2120: arguments that other scripts give to a function of the library.
EXCLUDED = "SC2329,SC2317,SC2034,SC2153,SC2154,SC2119,SC2120"
# Which other findings a file's comments allow, at their places.
ALLOWED = sorted({code for path in SOURCES for code in re.findall(r"# shellcheck disable=(SC\d+)", path.read_text())})


@pytest.mark.parametrize("name", ARGUMENTS)
def test_no_part_sets_a_variable_of_the_name_of_an_argument(name: str) -> None:
    """Arguments come first: a part that sets one as it is read would take its place."""
    found = set()
    for line in scripts.compose(name).splitlines():
        if re.match(r"[A-Z_]+=", line):
            found |= {
                one for one, value in re.findall(r"(?:^|(?<=\s))([A-Z_]+)=(\S*)", line) if f"{{{one}" not in value
            }
    assert not found & set(ARGUMENTS[name])


def passes_shellcheck(text: str, *options: str) -> None:
    command = [str(TOOLS / "shellcheck"), "--shell=bash", *options, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_has_its_composition_here() -> None:
    assert sorted(ARGUMENTS) == sorted(path.name for path in scripts.FOLDER.glob("*.sh"))


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_the_header_of_a_script_names_its_arguments(name: str) -> None:
    header = (scripts.FOLDER / name).read_text().partition("\n\n")[0]
    assert all(argument in header for argument in ARGUMENTS[name])
    assert "# Verbs: " in header
    assert ("packages.sh" in header) == ("packages/running" in scripts.library_of(name))


def test_the_header_of_the_packages_library_names_its_arguments() -> None:
    header = (scripts.FOLDER / "lib/packages.sh").read_text().partition("\n\n")[0]
    assert all(argument in header for argument in OF_PACKAGES)


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if path not in INSTALLED],
    ids=lambda path: path.relative_to(scripts.FOLDER).as_posix(),
)
def test_a_file_passes_shellcheck_with_what_its_comments_allow(path: Path) -> None:
    passes_shellcheck(path.read_text(), f"--exclude={EXCLUDED}")


@pytest.mark.parametrize("name", sampling.sample(sorted(ARGUMENTS), 14, "sent"))
def test_the_script_as_it_is_sent_passes_shellcheck(name: str) -> None:
    """What files do to each other: an array that is text elsewhere, a variable that is lost in a subshell. Comments aren't sent.

    `make lint` asks it of every script, `make test` of a third of them, of others each day.
    Which values reach a line, which is two thirds of shellcheck's time, is asked for each file alone.
    """
    of_packages = OF_PACKAGES if "packages/running" in scripts.library_of(name) else ()
    sent = scripts.compose(name, **dict.fromkeys((*ARGUMENTS[name], *of_packages), "x"))
    passes_shellcheck(sent, f"--exclude={','.join((EXCLUDED, *ALLOWED))}", "--extended-analysis=false")


@pytest.mark.parametrize("path", INSTALLED, ids=lambda path: path.name)
def test_what_is_installed_on_a_host_is_plain_sh(path: Path) -> None:
    done = subprocess.run([str(TOOLS / "shellcheck"), "--exclude=SC1091", str(path)], capture_output=True, text=True)
    assert path.read_text().startswith("#!/bin/sh\n")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", METAL, ids=lambda path: path.name)
def test_what_runs_in_the_hosts_of_the_metal_tier_passes_shellcheck(path: Path) -> None:
    done = subprocess.run([str(TOOLS / "shellcheck"), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_scripts_are_formatted() -> None:
    """In one run, which names the files: a start of shfmt takes longer than a file."""
    files = [str(path) for path in (*SOURCES, *METAL)]
    done = subprocess.run([str(TOOLS / "shfmt"), "-i", "2", "-ci", "-d", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# A program may fail after its output began, and its reader can't know; what it says goes into a variable, and all of that is written.
_READS = re.compile(r"(?<!\|)\| (re)?write_atomically\b")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_a_program_makes_is_whole_before_it_takes_a_files_name(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [line for line in lines if _READS.search(line)] == []


# With `set -e`, bash 5.2 ends at `x=$(<FILE)` of a file that can't be read, also in a condition. A function or `cat` doesn't.
_READ_IN_A_CONDITION = re.compile(r"=\"?\$\(<[^)]*\).*(\|\||&&)|\b(if|while|until|!) .*=\"?\$\(<")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_condition_is_whether_a_file_can_be_read_by_bash_alone(path: Path) -> None:
    if path.match("lib/kept_scripts.sh"):
        return  # comes before `set -e`
    assert [line for line in path.read_text().splitlines() if _READ_IN_A_CONDITION.search(line)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_path_that_a_script_opens_goes_through_root(path: Path) -> None:
    # Paths that are opened, tested or written: after a redirection, a test, or as a command's argument. Those handed to
    # put_file and its like, and texts, are prefixed there.
    opened = re.compile(
        r"""(?:[<>]\s*"?|-[edfrsx]\s+"?|\b(?:cat|rm|mv|cp|find|readlink|stat|ls)\s+(?:-\S+\s+)*"?)/(?!dev/null)"""
    )
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        code = line.split(" # ")[0]
        assert line.lstrip().startswith("#") or not opened.search(code), f"{path.name}:{number}: {line.strip()}"
