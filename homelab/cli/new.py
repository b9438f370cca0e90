"""`homelab new DIR`: a project's folder, in which `homelab init` writes settings and `pulumi up` carries them out.

The project has the Python environment that this command runs in: it needs no second one, and an update of the package
updates its program, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from homelab import template
from homelab.cli.settings_file import write_settings
from homelab.errors import HomelabError

PROGRAM = '''"""homelab's program, which comes with the package: makes what Pulumi.<stack>.yaml says."""

from homelab import template

template.run_program()
'''
_ENVIRONMENT = "virtualenv: .venv"
_COPIED = ("docs/config.schema.json", "provider/pulumi-resource-homelab", "provider/pulumi-resource-homelab.cmd")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="homelab new",
        description="Makes a folder with a Pulumi project, in which you run homelab init and pulumi up.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder, or one without a Pulumi project")
    return parser


def make(folder: Path, environment: Path) -> None:
    """Writes a project's files. Pulumi.yaml comes last: a folder that has it is whole.

    :param environment: the folder of the Python environment that Pulumi runs the program with.
    :raises HomelabError: the folder has a program or a project already, or can't be written to.
    """
    taken = [name for name in ("Pulumi.yaml", "__main__.py", "provider") if (folder / name).exists()]
    if taken:
        raise HomelabError(
            wanted=f"a folder for a new project: {folder}",
            found=f"it has {', '.join(taken)} already",
            why="what is there must not be lost",
            next="give another folder; to move a project to this machine, set virtualenv in its Pulumi.yaml to "
            f"{environment}",
        )
    source = template.folder()
    project = (source / "Pulumi.yaml").read_text(encoding="utf-8")
    try:
        for name in _COPIED:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target)
            target.chmod(0o755 if target.parent.name == "provider" else 0o644)
        (folder / "__main__.py").write_text(PROGRAM, encoding="utf-8", newline="\n")
        # homelab's environment, on this machine.
        write_settings(
            folder / "Pulumi.yaml", project.replace(_ENVIRONMENT, f"virtualenv: {json.dumps(str(environment))}")
        )
    except OSError as error:
        raise HomelabError(
            wanted=f"a project's files in {folder}",
            found=str(error),
            why="Pulumi runs the program in this folder",
            next="give a folder that you may write to",
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    folder = parser().parse_args(argv).folder
    if sys.prefix == sys.base_prefix:
        raise HomelabError(
            wanted="homelab in a Python environment of its own",
            found=f"it is installed beside Python itself, in {sys.prefix}",
            why="Pulumi runs the program with the Python of one environment, which the project names",
            next="install it by pipx or uv tool install, or into a virtual environment",
        )
    make(folder, Path(sys.prefix))
    print(f"{folder} is a project. Next, in it:\n  homelab init ADDRESS\n  pulumi up")
    return 0
