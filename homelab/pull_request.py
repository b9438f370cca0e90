"""The preview of a stack as Markdown, for a pull request: `python -m homelab.pull_request`, in the project's folder.

Where the stack's state is comes from the environment, as always (PULUMI_BACKEND_URL, PULUMI_ACCESS_TOKEN); without
either, it is the preview of a first `pulumi up`, on an empty state. No host is asked, whatever the settings say, and
its key isn't needed; without a state no passphrase is, either: a word stands in place of each encrypted value. So a job
that runs a pull request's code needs no secret at all.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from homelab import events
from homelab.cli import stack_options
from homelab.cli.project import environment
from homelab.cli.pulumi import Pulumi
from homelab.errors import HomelabError
from homelab.events import Event
from homelab.fields.paths import text_of
from homelab.settings import project, stack_file
from homelab.show import reading, terminal, tree
from homelab.show.cards import of_outputs
from homelab.text import tell

# What a comment on a pull request may hold, with room to spare (65,536 characters).
LONGEST = 60_000
# By it comment.yml finds the comment that it is to update.
MARK = "<!-- homelab-preview -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the Markdown.

    :returns: the exit status: not 0 if `pulumi up` would be refused, so that a job fails with it.
    :raises HomelabError: there is no Pulumi CLI or no project, or no stack can be made.
    """
    parser = argparse.ArgumentParser(prog="python -m homelab.pull_request", description=__doc__)
    stack_options.add_name(parser)
    parser.add_argument("--output", type=Path, default=Path("preview.md"))
    options = parser.parse_args(arguments)
    # A secret that isn't set arrives as an empty variable.
    has_state = any(os.environ.get(name) for name in ("PULUMI_BACKEND_URL", "PULUMI_ACCESS_TOKEN"))
    stack = stack_options.chosen(options)
    file = stack_file.path_of(stack)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not has_state:
            os.environ |= {"PULUMI_BACKEND_URL": folder.as_uri(), "PULUMI_CONFIG_PASSPHRASE": ""}
        pulumi = Pulumi.find(project(), stack)
        environment(pulumi.folder)
        # A copy: no host is asked, and a stack that is made only for this preview writes its salt there.
        config = folder / file.name
        config.write_text(settings(text_of(file), with_secrets=has_state), encoding="utf-8", newline="\n")
        if not has_state:
            shutil.copy(project() / "Pulumi.yaml", folder)
            Pulumi(pulumi.program, folder, stack).make_stack()
        process, logged = pulumi.logged_preview("--config-file", str(config))
        cards = drawn(config, pulumi.outputs if has_state else dict)
    text = (process.stdout + process.stderr).strip()
    markdown = comment(stack, process.returncode, text, logged, cards)
    options.output.write_text(markdown, encoding="utf-8", newline="\n")
    tell(text)
    return process.returncode or int(bool(events.refusals(logged)))


def comment(stack: str, code: int, text: str, log: Sequence[Event], cards: str) -> str:
    """The Markdown: refusals, counts, who has which card, and the whole preview folded away.

    :param code: the CLI's exit status.
    :param text: what it printed.
    :param log: its event log.
    :param cards: who has which, as a tree; empty: not known.
    """
    refusals = events.refusals(log)
    parts = [f"### Preview of stack {stack}{': refused' if code or refusals else ''}"]
    parts += [_fenced(refusal, "text") for refusal in refusals]
    counted = events.in_words(events.counts(log))
    parts += [f"**{counted}**"] if counted else []
    parts += [_fenced(cards, "text"), tree.LEGEND] if cards else []
    room = max(LONGEST - sum(len(part) for part in parts), 1)
    parts.append(f"<details><summary>the whole preview</summary>\n\n{_fenced(text[-room:], 'text')}\n\n</details>")
    return "\n\n".join([*parts, MARK]) + "\n"


def drawn(file: Path, outputs_of: Callable[[], Mapping[str, object]]) -> str:
    """Who has which card with a stack's settings, as a tree, marked against the stack's outputs; empty where one of
    them can't be read, which the preview itself says.

    :param outputs_of: returns the outputs.
    """
    try:
        outputs, found = outputs_of(), stack_file.StackFile.read(file).guests()
    except HomelabError:
        return ""
    trees = []
    for name, host in found.hosts.items():
        current = of_outputs(outputs, name)
        planned = reading.wanted_of_outputs(outputs, name, host, *found.guests_on(name))
        trees.append(tree.of_host(f"{name} ({host.address})", current, planned))
    return terminal.text(trees, width=terminal.WIDTH_OF_A_FILE, colours=False).rstrip()


def settings(text: str, *, with_secrets: bool) -> str:
    """A stack's file for a preview that asks no host.

    :param text: the file's.
    :param with_secrets: with them and what decrypts them; else as one can read it who can decrypt nothing.
    """
    whole = stack_file.parsed(text) or {}
    config = {**stack_file.config_of(whole), "homelab:plan": "never"}
    if not with_secrets:
        whole, config = {}, stack_file.readable(config)
    return yaml.dump({**whole, "config": config}, Dumper=stack_file.Writer, sort_keys=False)


def _fenced(text: str, language: str) -> str:
    """Text as it is, in a fence that nothing in it ends."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (HomelabError, OSError) as error:
        sys.exit(str(error))
