"""`homelab drift`: has anything on the hosts drifted since the last `up`? Runs `pulumi preview --refresh`,
which changes nothing.

Exit status: 0, nothing has; 1, something has; 2, the check failed. `--install-timer` prints a systemd timer that asks
once a day.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from homelab import drift
from homelab.cli import stack_options
from homelab.cli.pulumi import Pulumi
from homelab.errors import HomelabError
from homelab.settings import project

NOTHING, DRIFTED, UNKNOWN = 0, 1, 2
HOOK = "HOMELAB_HOOK"
HOOK_SECONDS = 20


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="homelab drift",
        description="Checks whether anything on the hosts has changed since the last `pulumi up`. Changes nothing.",
    )
    stack_options.add(parser)
    parser.add_argument("--output", type=Path, help="also write the result to this file, as Markdown")
    parser.add_argument(
        "--hook",
        default=os.environ.get(HOOK),
        help=f"URL that gets a line of text if something has drifted, as ntfy takes it (default: ${HOOK})",
    )
    parser.add_argument(
        "--hook-json",
        action="store_true",
        help='send {"text", "content"} instead, as Slack, Mattermost and Discord take it',
    )
    parser.add_argument(
        "--install-timer",
        action="store_true",
        help="print a systemd service and timer, and where to put them; do nothing else",
    )
    return parser


def look(stack: str, config_file: Path | None) -> drift.Drift:
    """Drift of a stack, by a preview with a refresh.

    :raises HomelabError: there is no Pulumi CLI or no project.
    """
    options = ["--config-file", str(config_file)] if config_file else []
    preview, logged = Pulumi.find(project(), stack).logged_preview("--refresh", "--expect-no-changes", *options)
    if not logged and preview.returncode != 0:
        return drift.Drift(stack, [], [], [(preview.stderr or preview.stdout).strip()[-2000:]])
    return drift.of_events(stack, logged, preview.returncode)


def tell(hook: str, line: str, *, as_json: bool) -> None:
    """Sends a line to a hook's address.

    :raises HomelabError: the hook can't be reached, or refuses the line. Its address may be a secret, and isn't shown.
    """
    body, kind = (
        (json.dumps({"text": line, "content": line}), "application/json")
        if as_json
        else (line, "text/plain; charset=utf-8")
    )
    request = urllib.request.Request(hook, data=body.encode(), headers={"Content-Type": kind}, method="POST")
    try:
        if request.type not in ("http", "https"):
            raise urllib.error.URLError(f"{request.type} is not a web address")
        urllib.request.urlopen(request, timeout=HOOK_SECONDS).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise HomelabError(
            wanted="one line sent to the hook",
            found=f"{type(error).__name__}: {reason}",
            why="the message that something has drifted was not delivered",
            next=f"correct --hook, or {HOOK}: an https address that takes a POST",
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parser().parse_args(argv)
    if arguments.install_timer:
        me, path = getpass.getuser(), os.environ.get("PATH", os.defpath)
        print(drift.timer(arguments.stack, project(), Path(sys.executable), me, path), end="")
        return NOTHING
    try:
        result = look(arguments.stack, arguments.config_file)
    except HomelabError as error:  # which the hook is told, too
        result = drift.Drift(arguments.stack, [], [], [str(error)])
    if arguments.output:
        arguments.output.write_text(result.markdown(), encoding="utf-8", newline="\n")
    for line in result.errors or result.lines or [result.line]:
        print(line)
    if result.next:
        print(f"next: {result.next}")
    if arguments.hook and (result.exists or result.errors):
        tell(arguments.hook, result.line, as_json=arguments.hook_json)
    return UNKNOWN if result.errors else DRIFTED if result.exists else NOTHING
