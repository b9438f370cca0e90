"""Unpacking, configuring and removing packages as dpkg does it, for apt-get and for dpkg itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from . import apt, contents, dpkg, network
from .apt import Change, Version
from .dpkg import Database, Package
from .program import Failure
from .state import HostState
from .versions import relations


def perform(
    host: HostState,
    database: Database,
    change: Change,
    *,
    purge: bool,
    quiet: bool = False,
    fix: bool = False,
) -> int:
    """Remove, unpack, configure: what dpkg does for apt. Returns apt-get's exit status.

    The database is written after every step, as dpkg does, so that one that is killed is found half-way.
    """

    def told(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    for name, package in change.remove.items():
        remove_package(host, database, package, purge=purge, say=told)
        if name in database.packages and purge:
            del database.packages[name]
        database.save()
    if fix:
        database.note_repair()
    order = _in_order(change.install)
    for version in order:
        unpack(host, database, version, told)
    names = [*(p.name for p in database.broken() if p.name not in change.install), *(v.name for v in order)]
    return configure_all(host, database, [database.packages[name] for name in names], told)


def _in_order(wanted: dict[str, Version]) -> list[Version]:
    """Dependencies before those that depend on them."""
    done: dict[str, Version] = {}

    def visit(version: Version, path: tuple[str, ...]) -> None:
        if version.name in done or version.name in path:
            return
        for clause in relations(version.record.get("depends", "")):
            for relation in clause:
                if relation.name in wanted:
                    visit(wanted[relation.name], (*path, version.name))
        done[version.name] = version

    for version in wanted.values():
        visit(version, ())
    return list(done.values())


def _gives(host: HostState, package: Package) -> dict[str, object]:
    """What a package brought, by its group; nothing for what the system is made of."""
    group = network.data(host)["groups"].get(package.group, {})
    for record in group.get("packages", {}).get(package.name, []):
        if record["version"] == package.version:
            return dict(record.get("gives", {}))
    for template, body in group.get("templates", {}).items():
        kernel = re.fullmatch(re.escape(template).replace(re.escape("{k}"), "(.+)"), package.name)
        if kernel:
            return dict(apt.record_for_kernel(template, body, kernel[1])[1].get("gives", {}))
    return {}


def remove_package(
    host: HostState, database: Database, package: Package, *, purge: bool, say: Callable[[str], None]
) -> None:
    """Remove one package, or, of one that is removed already, what was left of it."""
    if package.present:
        say(f"Removing {package.name} ({package.version}) ...")
    if purge:
        say(f"Purging configuration files for {package.name} ({package.version}) ...")
    if package.present:
        gives = _gives(host, package)
        contents.remove(host, package.name, gives, purge=purge)
        if gives.get("kernel-common") or gives.get("blacklist"):
            for other in database.packages.values():
                if other.present and other is not package:
                    contents.unpack_common(host, _gives(host, other))
    elif purge:
        # Its other files are gone, and those of that name are somebody else's by now.
        contents.remove_configuration(host, _gives(host, package))
    package.state, package.hold = "config-files", False
    if purge:
        database.packages.pop(package.name, None)
    database.save()


def unpack(host: HostState, database: Database, version: Version, say: Callable[[str], None]) -> None:
    """Unpack one package, in place of an older one."""
    old = database.packages.get(version.name)
    say(f"Preparing to unpack .../{version.name}_{version.version}_{version.record['architecture']}.deb ...")
    if old is not None and old.present:
        say(f"Unpacking {version.name} ({version.version}) over ({old.version}) ...")
        contents.remove(host, old.name, _gives(host, old), purge=False)
    else:
        say(f"Unpacking {version.name} ({version.version}) ...")
    package = dpkg.package_of(version.name, version.record, version.group, "unpacked")
    package.hold = bool(old and old.hold)
    contents.unpack(host, version.name, version.record.get("gives", {}))
    database.packages[version.name] = package
    database.save()


def configure_all(host: HostState, database: Database, waiting: list[Package], say: Callable[[str], None]) -> int:
    """Configure packages; those that depend on one that fails are left, and so reported. Returns apt-get's exit status."""
    failed: list[str] = []
    for package in waiting:
        needs = {r.name for clause in relations(package.fields.get("Depends", "")) for r in clause}
        if blocked := sorted(needs & set(failed)):
            print(
                f"dpkg: dependency problems prevent configuration of {package.name}:\n {package.name} depends on {blocked[0]}; "
                f"however:\n  Package {blocked[0]} is not configured yet.\n\ndpkg: error processing package {package.name} "
                "(--configure):\n dependency problems - leaving unconfigured",
                file=sys.stderr,
            )
            failed.append(package.name)
            continue
        say(f"Setting up {package.name} ({package.version}) ...")
        try:
            for line in contents.configure(host, _gives(host, package)):
                say(line)
        except Failure as error:
            package.state = "half-configured"
            database.save()
            print(
                f"{error}\ndpkg: error processing package {package.name} (--configure):\n installed {package.name} package "
                f"post-installation script subprocess returned error exit status {error.status}",
                file=sys.stderr,
            )
            failed.append(package.name)
            continue
        package.state = "installed"
        database.save()
    database.save()
    if failed:
        print(
            "Errors were encountered while processing:\n" + "".join(f" {n}\n" for n in failed), end="", file=sys.stderr
        )
        print("E: Sub-process /usr/bin/dpkg returned an error code (1)", file=sys.stderr)
        return 100
    return 0
