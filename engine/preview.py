"""The preview of a stack as Markdown, for a pull request: `make pull-request-preview STACK=homelab OUTPUT=preview.md`.

Where the stack's state is comes from the environment, as always (PULUMI_BACKEND_URL, PULUMI_ACCESS_TOKEN); without either, the
preview is that of a first `pulumi up`, on an empty state. The host isn't needed, and neither is its key; without a state no passphrase
is, either: a word stands in place of each encrypted value. So a job that runs a pull request's code needs no secret at all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from engine import install, stacks
from homelab.settings.secrets import readable

PROJECT = Path(__file__).resolve().parent.parent
# What a comment on a pull request may hold, with room to spare (65,536 characters).
LONGEST = 60_000


def main(arguments: list[str] | None = None) -> int:
    """Writes the Markdown; returns the preview's exit code, so that a job fails with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", required=True)
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
        done = subprocess.run(
            [str(engine.pulumi), "preview", "--color", "never", *where], env=environment, capture_output=True, text=True
        )
    text = (done.stdout + done.stderr).strip()
    verdict = "" if done.returncode == 0 else ": refused"
    wanted.output.write_text(
        f"### `pulumi preview` of stack `{wanted.stack}`{verdict}\n\n```text\n{text[-LONGEST:]}\n```\n",
        encoding="utf-8",
    )
    print(text)
    return done.returncode


def without_secrets(config: Path) -> None:
    """A stack's file as one can read it who can decrypt nothing; no host is asked then, as nobody could log in to it."""
    found = yaml.safe_load(config.read_text(encoding="utf-8"))
    values = found.get("config") or {}
    plain = readable(values)
    if plain != values:
        plain["homelab:plan"] = "never"
    config.write_text(yaml.safe_dump({"config": plain}, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
