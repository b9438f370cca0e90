"""`python -m tests.node root@ADDRESS[:PORT]`: shows what it does to a throw-away node, asks, runs the roads there, and writes node-report.json."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from homelab.cli import access
from homelab.cli.pulumi import PASSWORD
from homelab.errors import Declined, HomelabError, Mistake
from homelab.init.ask import Ask, say
from tests.conftest import PROJECT
from tests.e2e.roads import IDS, MADE
from tests.host import SshHost
from tests.node import tier
from tests.node.record import recorded


def parser() -> argparse.ArgumentParser:
    """The command's arguments; the root's password comes from the environment (HOMELAB_PASSWORD)."""
    parser = argparse.ArgumentParser(prog="tests.node", description=__doc__)
    add = parser.add_argument
    add("node", metavar="root@ADDRESS[:PORT]")
    add("--card", nargs="?", const="first", default="", metavar="ID", help="give away the first card, or that one")
    add("--slow", type=int, default=1, metavar="N", help="a node that is N times slower than most")
    add("--yes", action="store_true", help="ask nothing")
    add("--host-key", metavar="KEY", help="its key, or its SHA256 fingerprint")
    add("--identity", metavar="FILE", help="log in with this private key")
    add("--record", type=Path, metavar="FOLDER", help="write the API's answers there")
    add("--roads", default="", metavar="WORDS", help="only those whose names have these words, as of pytest -k")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; 2: the node is refused, or its owner has said no."""
    arguments = parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="homelab-node-") as folder:
        try:
            host, login = reached(arguments, Path(folder))
            if error := tier.refusal(host):
                raise error
            say(
                f"On {host.address} this makes and deletes guests {IDS[0]} to {IDS[-1]}, changes its configuration and its "
                f"boot, kills what runs, and restarts it{', with the card ' + arguments.card if arguments.card else ''}. At the end all is to be "
                f"as it was, but for a guest of its own, a template and {MADE}; if a road fails, it isn't."
            )
            if not arguments.yes and input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
                raise Declined("Nothing was done.")
        except (Declined, HomelabError, Mistake) as error:
            say(str(error))
            return 2
        found, report = tier.Tier(host, login), tier.about(host)
        told = ["-m", "node", "-n", "0", "-v", "-k", arguments.roads]
        with recorded(host, arguments.record):
            status = pytest.main([*told, str(PROJECT / "tests" / "e2e")], plugins=[found])
    report["roads"] = found.roads
    Path("node-report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    Path("node-report.md").write_text(tier.as_table(report), encoding="utf-8")
    say(f"Written: {Path('node-report.json').absolute()}, and its table for docs/tiers.md, node-report.md.")
    return int(status)


def reached(arguments: argparse.Namespace, folder: Path) -> tuple[SshHost, dict[str, object]]:
    """The node, its key confirmed as `homelab init` has it confirmed.

    :raises HomelabError: another key answers, or no login works.
    :raises Declined: the key isn't the node's.
    :raises Mistake: no key of the person's gets in.
    """
    entry = access.access_to(arguments.node, arguments.host_key, arguments.identity, {}, Ask(arguments.yes))
    ssh = entry.host.ssh
    if entry.install or ssh.user != "root":
        raise Mistake(f"The tier logs in as root, with a key: `ssh-copy-id root@{entry.host.address}` first.")
    known = folder / "known_hosts"
    place = entry.host.address if ssh.port == 22 else f"[{entry.host.address}]:{ssh.port}"
    known.write_text(f"{place} {ssh.pinned_host_key}\n")
    key = Path(ssh.private_key_file).expanduser() if ssh.private_key_file else None
    host = SshHost(entry.host.address, ssh.port, key, known)
    host.slow, host.given, host.cut = arguments.slow, arguments.card, os.environ.get("CUT") or host.cut
    host.password = {PASSWORD: os.environ[PASSWORD]} if PASSWORD in os.environ else {}
    return host, dict(entry.login)


if __name__ == "__main__":
    sys.exit(main())
