"""Which distribution a system is, by os-release(5)."""

from __future__ import annotations

import re

from remote_scripts.tools.system import System


def distribution(system: System) -> tuple[str, str]:
    """ID and VERSION_ID, such as debian and 13; empty where it says none.

    :raises OSError: it is there, and can't be read.
    """
    text = system.files.need_text("/etc/os-release") or system.files.need_text("/usr/lib/os-release")
    return _value(text, "ID"), _value(text, "VERSION_ID")


def _value(text: str, key: str) -> str:
    match = re.search(rf"^{key}=[\"']?([^\"'\n]*)[\"']?$", text, re.MULTILINE)
    return match[1] if match else ""
