"""tail and od of EFI variables: the kernel lets nobody seek in these files (efivarfs, no_llseek), so both fail where they are told to skip.

Launchers ask for these only when a path in efivars is named; every other file is left to this machine's own programs.
"""

from __future__ import annotations

import os
import sys

from .state import HostState

#: Program -> the beginnings of the arguments by which it seeks in a regular file.
SEEKING = {"tail": ("-c+", "+"), "od": ("-j", "--skip-bytes")}


def main(_: HostState, name: str, arguments: list[str]) -> int:
    """One of these programs."""
    if any(argument.startswith(SEEKING[name]) for argument in arguments):
        file = next(argument for argument in arguments if "efivars/" in argument)
        print(f"{name}: {file}: cannot seek: Illegal seek", file=sys.stderr)
        return 1
    return os.spawnv(os.P_WAIT, f"/usr/bin/{name}", [name, *arguments])
