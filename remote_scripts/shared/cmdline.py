"""The kernel command line of the next boot: what is configured, by whom, and what was generated of it.

With GRUB they are settings in shell files, with systemd-boot the first line of /etc/kernel/cmdline. Nothing is written
here.
"""

from __future__ import annotations

import re

from remote_scripts.shared.boot import GRUB_MENU, KERNEL_CMDLINE, need_text
from remote_scripts.shared.words import without_words
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

#: What we have put on the first line of /etc/kernel/cmdline: a file for each layer, with a line for each text.
RECORDS = f"{HOME}/cmdline"
_GRUB, _DROP_INS = "/etc/default/grub", "/etc/default/grub.d"
_OURS = "zz-homelab-"
_KERNEL_LINE = re.compile(r"^[ \t\r\v\f]*linux(?:efi)?[ \t\r\v\f]+(?:[^ \t\r\v\f\n]+[ \t\r\v\f]*(.*))?", re.MULTILINE)
# grub-mkconfig sources these files: only a shell knows what they say. Whatever they print is dropped. The newline says
# that none of them has ended the shell.
_ASK_SHELL = (
    'for file in "$@"; do . "$file" >/dev/null 2>&1; done; '
    "printf '%s\\n' \"$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT\""
)


def drop_ins(system: System) -> list[str]:
    """Our files among GRUB's. Without them its words are the others' alone."""
    return [f"{_DROP_INS}/{name}" for name in _drop_ins(system) if name.startswith(_OURS)]


def records(system: System) -> list[str]:
    """The files below RECORDS.

    :raises OSError: the folder can't be read.
    """
    paths = (f"{RECORDS}/{name}" for name in system.files.need_names(RECORDS) if not name.startswith("."))
    return [path for path in paths if system.files.at(path).is_file()]


def configured(system: System, loader: str, *, others: bool = False) -> str:
    """What the kernel gets at the next boot.

    :param loader: grub or systemd-boot.
    :param others: what it would get without us.
    :raises Failure: it can't be read.
    """
    if loader == "grub":
        return _grub_words(system, others=others)
    # Only the first line counts (proxmox-boot-tool's get_first_line), with or without a newline at its end.
    line = need_text(system, KERNEL_CMDLINE).partition("\n")[0]
    if others:
        for path in records(system):
            line = without_words(line, need_text(system, path).split())
    return line


def generated(system: System) -> str:
    """The kernel command line of the first entry of GRUB's menu; empty where there is no menu, or no entry in it.

    :raises Failure: there is one that can't be read.
    """
    if not system.files.exists(GRUB_MENU):
        return ""
    match = _KERNEL_LINE.search(need_text(system, GRUB_MENU))
    return (match[1] or "") if match else ""


def _drop_ins(system: System) -> list[str]:
    """In the order in which GRUB reads them."""
    return [name for name in system.files.need_names(_DROP_INS) if name.endswith(".cfg") and not name.startswith(".")]


def _grub_words(system: System, *, others: bool) -> str:
    names = [name for name in _drop_ins(system) if not (others and name.startswith(_OURS))]
    paths = [system.files.at(path) for path in (_GRUB, *(f"{_DROP_INS}/{name}" for name in names))]
    files = [str(path) for path in paths if path.exists()]
    done = system.run.ask("bash", "-c", _ASK_SHELL, "bash", *files)
    text = done.output.decode("utf-8", "surrogateescape")
    if done.status != 0 or not text.endswith("\n"):
        raise Failure(
            f"to read which words {_GRUB} and {_DROP_INS} give the kernel",
            f"the shell that reads them as grub-mkconfig does ended with {done.status}",
            "what the next boot gets isn't known",
            "see on the host what grub-mkconfig complains of, and mend that file",
        )
    return text.removesuffix("\n").rstrip("\n")
