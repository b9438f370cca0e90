"""`python -m tests.metal`: makes the emulated host's image, unless it is there. The tests do so, too; this tells whether it can be done."""

from __future__ import annotations

import sys

from homelab.errors import HomelabError
from tests.host import HostError
from tests.metal import image
from tests.metal.machine import first_boot


def main() -> None:
    try:
        with image.alone():
            print(image.ensure(first_boot).folder)
    except (HomelabError, HostError) as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        sys.exit(f"the emulated host can't be made\n{error}\n{notes}")


main()
