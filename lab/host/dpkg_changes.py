"""What dpkg changes: packages that it installs, configures and removes."""

from __future__ import annotations

import sys

from . import dpkg
from .apt import version_of_file
from .dpkg import Database, Package, require_root
from .dpkg_steps import configure_all, remove_package, unpack
from .program import Failure, Options, UsageError
from .state import HostState
from .versions import relations


def change(host: HostState, options: Options) -> int:
    """Install, configure or remove, and return dpkg's exit status.

    Raises:
        UsageError: the options ask for something else.
        Failure: in dpkg's words.
    """
    if not options.has("configure", "i", "install", "r", "remove", "P", "purge"):
        raise UsageError(
            "the lab's dpkg has -l, -s, -i, -r, -P, --configure, --audit, --print-architecture, --compare-versions"
        )
    require_root(dpkg.LOCK)
    with dpkg.locked(host, 0):
        database = Database(host)
        if options.has("configure"):
            database.note_repair()
            waiting = (
                database.broken()
                if not options.rest
                else [database.packages[n] for n in options.rest if n in database.packages]
            )
            return _dpkg_status(configure_all(host, database, waiting, print))
        if options.has("i", "install"):
            return _install(host, database, options.rest)
        for name in options.rest:
            _remove(host, database, name, purge=options.has("P", "purge"))
        return 0


def _dpkg_status(status: int) -> int:
    return 1 if status else 0


def _install(host: HostState, database: Database, files: list[str]) -> int:
    names = []
    for path in files:
        version = version_of_file(host, path)
        unpack(host, database, version, print)
        names.append(version.name)
    problems = [text for name in names for text in _unmet(database, database.packages[name])]
    if problems:
        print("\n".join(problems), file=sys.stderr)
        print(
            "Errors were encountered while processing:\n" + "".join(f" {n}\n" for n in names), end="", file=sys.stderr
        )
        return 1
    return _dpkg_status(configure_all(host, database, [database.packages[name] for name in names], print))


def _unmet(database: Database, package: Package) -> list[str]:
    found = []
    for clause in relations(package.fields.get("Depends", "")):
        met = any(
            (p.name == r.name and r.accepts(p.version)) or (r.operator is None and r.name in p.provides())
            for r in clause
            for p in database.packages.values()
            if p.present
        )
        if not met:
            found.append(
                f"dpkg: dependency problems prevent configuration of {package.name}:\n {package.name} depends on "
                f"{' | '.join(map(str, clause))}; however:\n  Package {clause[0].name} is not installed.\n\n"
                f"dpkg: error processing package {package.name} (--install):\n dependency problems - leaving unconfigured"
            )
    return found


def _remove(host: HostState, database: Database, name: str, *, purge: bool) -> None:
    package = database.packages.get(name)
    if package is None or (not package.present and not purge):
        print(f"dpkg: warning: ignoring request to remove {name} which isn't installed", file=sys.stderr)
        return
    needed = [
        p.name
        for p in database.packages.values()
        if p.present and p.name != name
        and any(all(r.name in package.provides() for r in clause) for clause in relations(p.fields.get("Depends", "")))
    ]  # fmt: skip
    if needed and package.present:
        raise Failure(
            f"dpkg: dependency problems prevent removal of {name}:\n {needed[0]} depends on {name}.\n\n"
            f"dpkg: error processing package {name} (--{'purge' if purge else 'remove'}):\n dependency problems - not removing\n"
            f"Errors were encountered while processing:\n {name}",
        )
    remove_package(host, database, package, purge=purge, say=print)
