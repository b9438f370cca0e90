"""dpkg and dpkg-query of a lab's system; what dpkg changes is in `dpkg_changes`."""

from __future__ import annotations

import importlib
import re
import sys

from .dpkg import Database, Package, require_debian
from .program import Failure, Options, UsageError, logged
from .state import HostState
from .versions import holds

_LIST_HEAD = (
    "Desired=Unknown/Install/Remove/Purge/Hold\n| Status=Not/Inst/Conf-files/Unpacked/halF-conf/Half-inst/trig-aWait/"
    "Trig-pend\n|/ Err?=(none)/Reinst-required (Status,Err: uppercase=bad)\n||/ Name Version Architecture Description"
)
_FIELD = re.compile(r"\$\{([\w:-]+)(?:;-?\d+)?\}")
_LETTERS = {"installed": "i", "config-files": "c", "unpacked": "U", "half-configured": "F"}


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the programs."""
    require_debian(host, name)
    return _dpkg(host, arguments) if name == "dpkg" else _query(host, arguments)


def preload() -> None:
    """Have what changes packages, which a query does without."""
    importlib.import_module("host.dpkg_changes")


# -- dpkg ------------------------------------------------------------------------------------------------------
def _dpkg(host: HostState, arguments: list[str]) -> int:
    if arguments[:1] == ["--compare-versions"]:
        return _compare(arguments[1:])
    options = Options(
        arguments,
        "lsiPrLSE",
        (
            "list", "status", "print-architecture", "print-foreign-architectures", "install", "configure", "pending", "remove",
            "purge", "audit", "get-selections", "force-confdef", "force-confold", "force-confnew", "unpack", "abort-after=",
            "force-depends", "skip-same-version", "force-all", "verify", "listfiles",
        ),
    ) if not any(re.fullmatch(r"-a", word) for word in arguments) else Options(
        [word for word in arguments if word != "-a"], "", ("configure", "pending", "force-confdef", "force-confold", "force-confnew")
    )  # fmt: skip
    if options.has("print-architecture"):
        print("amd64")
        return 0
    if options.has("print-foreign-architectures"):
        return 0
    if options.has("l", "list"):
        return _list(host, options.rest)
    if options.has("s", "status"):
        return _status(host, options.rest)
    if options.has("audit"):
        return _audit(host)
    if options.has("get-selections"):
        for name, package in sorted(Database(host).packages.items()):
            print(f"{name}\t\t\t{'hold' if package.hold else 'install' if package.present else 'deinstall'}")
        return 0
    # Queries are asked far more often, and need no apt.
    from .dpkg_changes import change

    return logged(host, "dpkg", arguments, lambda: change(host, options))


def _compare(words: list[str]) -> int:
    if len(words) != 3:
        raise UsageError("--compare-versions takes three arguments: <version> <relation> <version>")
    try:
        return 0 if holds(words[0], words[1], words[2]) else 1
    except KeyError:
        raise Failure("dpkg: error: --compare-versions bad relation", 2) from None


def _list(host: HostState, patterns: list[str]) -> int:
    chosen, status = _matching(host, patterns)
    if not chosen:
        return 1
    print(_LIST_HEAD)
    for package in chosen:
        wanted = "h" if package.hold else "r" if package.state == "config-files" else "i"
        letters = f"{wanted}{_LETTERS[package.state]}"
        print(f"{letters}  {package.name:<36} {package.version:<20} {package.architecture:<12} {package.name}")
    return status


def _status(host: HostState, names: list[str]) -> int:
    database, status = Database(host), 0
    for name in names:
        package = database.packages.get(name.removesuffix(":amd64"))
        if package is None:
            print(
                f"dpkg-query: package '{name}' is not installed and no information is available\n"
                "Use dpkg --info (= dpkg-deb --info) to examine archive files.",
                file=sys.stderr,
            )
            status = 1
            continue
        print(f"Package: {package.name}\nStatus: {package.status}")
        for field, value in {**package.fields, "Version": package.version}.items():
            print(f"{field}: {value}")
    return status


def _audit(host: HostState) -> int:
    broken = Database(host).broken()
    if broken:
        print(
            "The following packages are only half configured, probably due to problems\n"
            "configuring them the first time.  The configuration should be retried using\n"
            "dpkg --configure <package> or the configure menu option in dselect:"
        )
        for package in broken:
            print(f" {package.name:<20} {package.name}")
    return 0


# -- dpkg-query ------------------------------------------------------------------------------------------------
def _matching(host: HostState, patterns: list[str]) -> tuple[list[Package], int]:
    """The packages that were asked for, and 1 if some pattern fits none (said on stderr)."""
    database = Database(host)
    everything = [p for _, p in sorted(database.packages.items())]
    if not patterns:
        # Those that were removed with their configuration left, too: only purged ones aren't known any more.
        return everything, 0
    found = database.matching(patterns)
    missing = [pattern for pattern, packages in found.items() if not packages]
    for pattern in missing:
        print(f"dpkg-query: no packages found matching {pattern}", file=sys.stderr)
    chosen = {package.name for packages in found.values() for package in packages}
    return [p for p in everything if p.name in chosen], int(bool(missing))


def _query(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "Wlsf:", ("show", "list", "status", "showformat="))
    if options.has("l", "list"):
        return _list(host, options.rest)
    if options.has("s", "status"):
        return _status(host, options.rest)
    if not options.has("W", "show"):
        raise UsageError("the lab's dpkg-query has -W [-f FORMAT], -l and -s")
    form = (options.value("f", "showformat") or "${Package}\\t${Version}\\n").removeprefix("=")
    chosen, status = _matching(host, options.rest)
    for package in chosen:
        wanted, _, state = package.status.split(" ")
        values = {
            "Package": package.name, "binary:Package": package.name, "Version": package.version if package.present else "",
            "Status": package.status, "db:Status-Status": state, "db:Status-Want": wanted, "db:Status-Abbrev":
            f"{'h' if package.hold else 'i' if package.present else 'r'}{_LETTERS[package.state]} ",
            "Architecture": package.architecture, "source:Package": package.name, "source:Version": package.version,
            "Depends": package.fields.get("Depends", ""), "Provides": package.fields.get("Provides", ""),
        }  # fmt: skip
        text = "".join(values.get(part, "") if odd % 2 else part for odd, part in enumerate(_FIELD.split(form)))
        print(text.replace("\\n", "\n").replace("\\t", "\t"), end="")
    return status
