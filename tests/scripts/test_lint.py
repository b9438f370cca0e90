"""What no linter knows: paths without their prefix, files that are made anew while they are read. shellcheck and shfmt: tests/script_lint.py."""

from __future__ import annotations

import re

from homelab.remote import scripts
from tests.script_lint import SOURCES


def test_what_is_installed_on_a_host_is_plain_sh() -> None:
    assert [path.name for path in SOURCES if not path.read_text().startswith("#!/bin/sh\n")] == []


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """`FILE:NUMBER: LINE` for each of the scripts' lines of code in which it is found, without what a comment says after the code."""
    return [
        f"{path.relative_to(scripts.FOLDER)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if not line.lstrip().startswith("#") and pattern.search(line.split(" # ")[0])
    ]


def test_what_the_kernel_or_proxmox_ve_makes_anew_is_read_at_once() -> None:
    """bash goes back after each line, and the kernel makes the file anew for the next one. (BusyBox, in the test VM, goes forward alone.)"""
    found = lines_with(
        re.compile(
            r"\bdone\b[^|]*<\"[^\"]*(/proc/|/sys/|/etc/pve/|\$PCI|\$PROCESS|\$PVE_LXC|\$NVIDIA_PROC|\$group|\$path|\$device)"
        )
    )
    assert [line for line in found if not line.startswith("files/passthrough_init.sh:")] == []


def test_every_path_that_a_script_opens_goes_through_root() -> None:
    """Paths that are opened, tested or written: after a redirection, a test, or as a command's argument. Those handed to put_file and its like are prefixed there."""
    opened = r"""(?:[<>]\s*"?|-[edfrsx]\s+"?|\b(?:cat|rm|mv|cp|find|readlink|stat|ls)\s+(?:-\S+\s+)*"?)/(?!dev/null)"""
    assert lines_with(re.compile(opened)) == []
