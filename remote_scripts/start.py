"""`__main__` of the agent's file: the file is compared with its sum before anything else of it is imported.

The sum, of all bytes before it, ends the archive's comment: 64 hexadecimal digits, after the version (put_agent.py).
"""

import sys
from hashlib import sha256


def _is_whole(path: str) -> bool:
    with open(path, "rb") as file:
        content = file.read()
    return sha256(content[:-64]).hexdigest().encode() == content[-64:]


if not _is_whole(sys.argv[0]):
    print(
        f"wanted: this program's part on this system, {sys.argv[0]}\n"
        "found:  it isn't what was put there\n"
        "why:    this step is done by it; nothing was changed\n"
        "next:   run `pulumi up --refresh`, which puts it there again, then the same once more"
    )
    sys.exit(1)

from remote_scripts import agent  # noqa: E402

# Made when packed. Where the package is installed, mypy names the lack of it otherwise than in a clone.
from remote_scripts.codes import OF_LAYERS  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: E402

sys.exit(agent.main(sys.argv[1:], OF_LAYERS))
