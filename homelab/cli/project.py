"""The Pulumi project that `homelab init` makes in a folder, and its stack."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import yaml

from homelab import template
from homelab.cli.pulumi import Pulumi
from homelab.cli.settings_file import read_settings, write_settings
from homelab.errors import Mistake

# The environment variable with the passphrase of the stack's secrets.
PASSPHRASE = "PULUMI_CONFIG_PASSPHRASE"
# Where the state is kept of who isn't logged in anywhere. Without `metadata=skip` a kill can leave an empty file beside
# it, and Pulumi can't read the state any more.
BACKEND, LOCAL = "PULUMI_BACKEND_URL", "file://~?metadata=skip"
_PROGRAM = '''"""homelab's program, which comes with the package: makes what Pulumi.<stack>.yaml says."""

from homelab import template

template.run_program()
'''
# An editor finds the schema beside the settings, whose first line names it.
_COPIED = ("docs/config.schema.json", "provider/*")


def check(folder: Path) -> None:
    """:raises Mistake: no project can be made or used here."""
    if lab := os.environ.get("HOMELAB_LAB"):  # lab/deploy.py
        raise Mistake(
            f"This shell is the simulated host's (HOMELAB_LAB={lab}): your host's state and secrets would be stored "
            "there, readable by anyone, and be removed together with it. Open another shell."
        )
    if sys.prefix == sys.base_prefix:
        raise Mistake("homelab is installed beside Python itself: install it by pipx or uv tool install.")
    taken = [name for name in ("__main__.py", "provider") if (folder / name).exists()]
    if taken and not (folder / "Pulumi.yaml").exists():
        raise Mistake(f"{folder} has {' and '.join(taken)}, and no Pulumi.yaml: run it in a new folder.")


def name_of(folder: Path) -> str:
    """The name of the project in a folder, by which Pulumi keeps its state."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).strip("-") or "homelab"


def stack_of(folder: Path, stack: str) -> str:
    """PROJECT/STACK, by which guests are noted on their host.

    :param stack: as Pulumi names it.
    """
    file = folder / "Pulumi.yaml"
    name = yaml.safe_load(file.read_text(encoding="utf-8"))["name"] if file.exists() else name_of(folder)
    return f"{name}/{stack.rpartition('/')[2]}"


def refuse_another(pulumi: Pulumi) -> None:
    """:raises Mistake: Pulumi keeps a stack of another folder under the names that a new project would have."""
    name, stack = name_of(pulumi.folder), pulumi.stack.rpartition("/")[2]
    listed = pulumi.run("stack", "ls", "--project", name, "--json").stdout
    if any(row["name"].rpartition("/")[2] == stack for row in json.loads(listed or "[]")):
        raise Mistake(
            f"Pulumi keeps a stack {stack} of a project {name} already, which another folder made; its next up would "
            "undo what that one did. Take a folder of another name, or name the stack (--stack)."
        )


def environment(folder: Path) -> str:
    """The program's environment, as Pulumi.yaml has it: `.venv` on each machine, a link to the one that this runs in;
    its path where there can be no link, as on Windows. What leads to an environment already stays.
    """
    link, here = folder / ".venv", Path(sys.prefix).resolve()  # which may be by this link
    with suppress(OSError):
        if link.is_symlink() and not link.exists():
            link.unlink()
        link.symlink_to(here, target_is_directory=True)
    return link.name if link.resolve() == here else sys.prefix


def make(folder: Path, backend: str | None) -> None:
    """Writes a project's files. Pulumi.yaml comes last: a folder that has it is whole.

    :param backend: where the state is kept; None: where the person is logged in.
    """
    source = template.folder()
    for file in [file for pattern in _COPIED for file in source.glob(pattern)]:
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        target.chmod(0o755 if target.parent.name == "provider" else 0o644)
    write_settings(folder / "__main__.py", _PROGRAM)
    project = (source / "Pulumi.yaml").read_text(encoding="utf-8").partition("config:\n")[0]
    project = re.sub(r"(?m)^name: .*$", f"name: {json.dumps(name_of(folder))}", project)
    project = project.replace("virtualenv: .venv", f"virtualenv: {json.dumps(environment(folder))}")
    write_settings(folder / ".gitignore", f"{read_settings(folder / '.gitignore')}\n/.venv\n")
    write_settings(folder / "Pulumi.yaml", project + (f"backend: {{url: {json.dumps(backend)}}}\n" if backend else ""))
