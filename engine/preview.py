"""The preview of a stack as Markdown, for a pull request: `make pull-request-preview STACK=homelab OUTPUT=preview.md`.

Where the stack's state is comes from the environment, as always (PULUMI_BACKEND_URL, PULUMI_ACCESS_TOKEN); without either, the
preview is that of a first `pulumi up`, on an empty state. The host isn't needed, and neither is its key; without a state no passphrase
is, either: a word stands in place of each encrypted value. So a job that runs a pull request's code needs no secret at all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from engine import install, stacks
from homelab import events
from homelab.cli import stack_options
from homelab.doctor import stack as stack_file
from homelab.errors import HomelabError
from homelab.events import Event
from homelab.markdown import fenced
from homelab.settings.secrets import readable
from homelab.settings.stack_file import parsed
from homelab.show import mermaid, reading, tree
from homelab.show.cards import of_outputs

PROJECT = Path(__file__).resolve().parent.parent
# What a comment on a pull request may hold, with room to spare (65,536 characters).
LONGEST = 60_000
# By it comment.yml finds the comment that it is to update.
MARK = "<!-- homelab-preview -->"


def main(arguments: list[str] | None = None) -> int:
    """Writes the Markdown.

    :returns: the preview's exit code, so that a job fails with it.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", type=stack_options.name, required=True)
    parser.add_argument("--output", type=Path, required=True)
    wanted = parser.parse_args(arguments)
    # A secret that isn't set arrives as an empty variable.
    environ = {name: value for name, value in os.environ.items() if value or not name.startswith("PULUMI_")}
    engine = install.ensure(environ)
    environment = {"PULUMI_CONFIG_PASSPHRASE": ""} | engine.environment(environ)
    with tempfile.TemporaryDirectory() as folder:
        # A stack that is made only for this preview writes its salt into its configuration: into a copy of it.
        config = Path(shutil.copy(PROJECT / f"Pulumi.{wanted.stack}.yaml", folder))
        where = ["--stack", wanted.stack, "--config-file", str(config), "--cwd", str(PROJECT), "--non-interactive"]
        if not {"PULUMI_BACKEND_URL", "PULUMI_ACCESS_TOKEN"} & set(environ):
            environment["PULUMI_BACKEND_URL"] = stacks.backend_url(Path(folder))
            without_secrets(config)
            stacks.create(engine.pulumi, wanted.stack, environment)
        log = Path(folder) / "events.jsonl"
        done = subprocess.run(
            [str(engine.pulumi), "preview", "--color", "never", "--event-log", str(log), *where],
            env={**environment, **events.ENVIRONMENT},
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        logged = events.read(log)
        put_out = subprocess.run(
            [str(engine.pulumi), "stack", "output", "--json", "--stack", wanted.stack, "--cwd", str(PROJECT)],
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        outputs = json.loads(put_out.stdout) if put_out.returncode == 0 and put_out.stdout.strip() else {}
    text = (done.stdout + done.stderr).strip()
    picture = drawn(PROJECT / f"Pulumi.{wanted.stack}.yaml", outputs)
    wanted.output.write_text(comment(wanted.stack, done.returncode, text, logged, picture), encoding="utf-8")
    print(text)
    return done.returncode


def comment(stack: str, code: int, text: str, log: Sequence[Event], picture: str) -> str:
    """The Markdown: refusals, counts, the picture, and the whole preview folded away.

    :param text: what the CLI printed.
    :param log: its event log.
    :param picture: Mermaid, empty: there is none.
    """
    parts = [f"### `pulumi preview` of stack `{stack}`{'' if code == 0 else ': refused'}"]
    parts += [fenced(one, "text") for one in events.errors(log)]
    counted = events.in_words(events.counts(log))
    parts += [f"**{counted}**"] if counted else []
    parts += [fenced(picture, "mermaid"), "`+` comes, `-` goes, `~` changes; the rest stays."] if picture else []
    room = LONGEST - sum(len(part) for part in parts)
    parts.append(
        f"<details><summary>the whole preview</summary>\n\n{fenced(text[-max(room, 0) :], 'text')}\n\n</details>"
    )
    return "\n\n".join([*parts, MARK]) + "\n"


def drawn(file: Path, outputs: dict[str, Any]) -> str:
    """Who has which card with these settings, as Mermaid; marked against what the stack has put out. Empty where the settings are mistaken,
    which the preview itself says."""
    try:
        found = stack_file.read(file).guests()
    except HomelabError:
        return ""
    trees = []
    for name, host in found.hosts.items():
        now = of_outputs(outputs, name)
        vms = {one: vm for one, vm in found.vms.items() if vm.host == name}
        containers = {one: container for one, container in found.containers.items() if container.host == name}
        trees.append(
            tree.of_host(
                f"{name} ({host.address})", now, reading.wanted_of_outputs(outputs, name, host, vms, containers, now)
            )
        )
    return mermaid.text(trees)


def without_secrets(config: Path) -> None:
    """A stack's file as one can read it who can decrypt nothing; no host is asked then, as nobody could log in to it."""
    found = parsed(config.read_text(encoding="utf-8"))
    values = found.get("config") or {}
    plain = readable(values)
    if plain != values:
        plain["homelab:plan"] = "never"
    config.write_text(yaml.safe_dump({"config": plain}, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
