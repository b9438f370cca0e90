"""Writes tests/windows/recorded.txt anew: what a console of 80 columns shows of `pulumi up` and `homelab show`, run by Windows' programs.

`python -m tests.windows.first_hour`. As tests/e2e/first_hour.py: the host is a lab's, and a name of a machine stands for its address and port.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lab import Lab
from tests.e2e import recording
from tests.windows import pc
from tests.windows.person import Person

BEGIN = (
    "The first hour, from Windows: by `python -m tests.windows.first_hour`, without a message that only Wine causes."
)
GIVEN = ("--card", "rtx5090=103")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Jürgens Häuser").mkdir()
        with Lab.start("rtx5090", state=Path(folder) / "host") as lab:
            person = Person.with_the_package(pc.ensure(), Path(folder) / "Jürgens Häuser" / "lab")
            person.init(lab, *GIVEN)
            shown = {
                "pulumi up --yes --skip-preview": list(recording.shortened(person.up()[1])),
                "homelab show": person.homelab_at_a_console("show"),
            }
            parts = [
                f"```\nPS> {command}\n{recording.as_on_a_host(lines, person.folder, lab)}\n```"
                for command, lines in shown.items()
            ]
    recording.PAGES["windows"].write_text("\n\n".join([BEGIN, *parts]) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
