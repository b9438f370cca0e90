"""tail of EFI variables: the kernel lets nobody seek in these files (efivarfs), and tail gives up where it is to begin later in a file.

Every other file is left to this machine's own program, as are variables to programs that read on where they can't seek (od, dd).
"""

from __future__ import annotations

import sys

from .node_programs import real
from .state import HostState


def main(_: HostState, name: str, arguments: list[str]) -> int:
    """The program."""
    file = next((argument for argument in arguments if "efivars/" in argument), None)
    if file and any(argument.startswith(("+", "-c+", "-n+")) for argument in arguments):
        print(f"{name}: {file}: cannot seek to relative offset: Illegal seek", file=sys.stderr)
        return 1
    return real(name, arguments)
