"""What no linter knows: arguments and their headers, paths without their prefix, output that may be cut short. shellcheck and shfmt: tests/script_lint.py."""

from __future__ import annotations

import re

from homelab.remote import scripts
from tests.rows import each
from tests.script_lint import ARGUMENTS, INSTALLED, OF_PACKAGES, SOURCES


@each(ARGUMENTS)
def test_no_part_sets_a_variable_of_the_name_of_an_argument(name: str) -> None:
    """Arguments come first: a part that sets one as it is read would take its place."""
    found = set()
    for line in scripts.compose(name).splitlines():
        if re.match(r"[A-Z_]+=", line):
            assigned = re.findall(r"(?:^|(?<=\s))([A-Z_]+)=(\S*)", line)
            found |= {one for one, value in assigned if f"{{{one}" not in value}
    assert found & set(ARGUMENTS[name]) == set()


def test_every_script_has_its_composition_here() -> None:
    assert sorted(ARGUMENTS) == sorted(path.name for path in scripts.FOLDER.glob("*.sh"))


@each(ARGUMENTS)
def test_the_header_of_a_script_names_its_arguments(name: str) -> None:
    header = (scripts.FOLDER / name).read_text().partition("\n\n")[0]
    assert [argument for argument in ARGUMENTS[name] if argument not in header] == []
    assert "# Verbs: " in header
    assert ("packages.sh" in header) == ("packages/running" in scripts.library_of(name))


def test_the_header_of_the_packages_library_names_its_arguments() -> None:
    header = (scripts.FOLDER / "lib/packages.sh").read_text().partition("\n\n")[0]
    assert all(argument in header for argument in OF_PACKAGES)


def test_what_is_installed_on_a_host_is_plain_sh() -> None:
    assert [path.name for path in INSTALLED if not path.read_text().startswith("#!/bin/sh\n")] == []


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """`FILE:NUMBER: LINE` for each of the scripts' lines of code in which it is found, without what a comment says after the code."""
    return [
        f"{path.relative_to(scripts.FOLDER)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if not line.lstrip().startswith("#") and pattern.search(line.split(" # ")[0])
    ]


def test_what_a_program_makes_is_whole_before_it_takes_a_files_name() -> None:
    """A program may fail after its output began, and its reader can't know; what it says goes into a variable, and all of that is written."""
    assert lines_with(re.compile(r"(?<!\|)\| (re)?write_atomically\b")) == []


def test_what_the_kernel_or_proxmox_ve_makes_anew_is_read_at_once() -> None:
    """``read_lines`` (lib/lines.sh) says why. (`read -d ''` takes all there is, and BusyBox, in the test VM, goes forward alone.)"""
    found = lines_with(
        re.compile(
            r"\bdone\b[^|]*<\"[^\"]*(/proc/|/sys/|/etc/pve/|\$PCI|\$PROCESS|\$PVE_LXC|\$NVIDIA_PROC|\$group|\$path|\$device)"
        )
    )
    assert [line for line in found if not line.startswith("files/passthrough_init.sh:")] == []


def test_no_condition_is_whether_a_file_can_be_read_by_bash_alone() -> None:
    """With `set -e`, bash 5.2 ends at `x=$(<FILE)` of a file that can't be read, also in a condition. A function or `cat` doesn't."""
    found = lines_with(re.compile(r"=\"?\$\(<[^)]*\).*(\|\||&&)|\b(if|while|until|!) .*=\"?\$\(<"))
    # That one comes before `set -e`.
    assert [line for line in found if not line.startswith("lib/kept_scripts.sh:")] == []


def test_what_ends_a_subshell_is_all_that_it_does() -> None:
    """Elsewhere it would end the script itself, and what follows would never run."""
    assert (
        lines_with(re.compile(r"(?<!\()(?<!\(\) \{ )\bexec_(within|pve) |\(exec_(within|pve) [^)]*(\|\||&&|;)")) == []
    )


def test_every_path_that_a_script_opens_goes_through_root() -> None:
    """Paths that are opened, tested or written: after a redirection, a test, or as a command's argument. Those handed to put_file and its like are prefixed there."""
    opened = r"""(?:[<>]\s*"?|-[edfrsx]\s+"?|\b(?:cat|rm|mv|cp|find|readlink|stat|ls)\s+(?:-\S+\s+)*"?)/(?!dev/null)"""
    assert lines_with(re.compile(opened)) == []
