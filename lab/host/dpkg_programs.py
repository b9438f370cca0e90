"""dpkg, dpkg-query and dkms of a lab's system."""

from __future__ import annotations

import re
import sys

from . import dkms, dpkg
from .apt_programs import configure_all, remove_package, require_debian, require_root, unpack, version_of_file
from .dpkg import Database, Package
from .kernel_files import has_headers
from .program import Failure, Options, UsageError, logged
from .state import HostState
from .versions import holds, relations

_LIST_HEAD = (
    "Desired=Unknown/Install/Remove/Purge/Hold\n| Status=Not/Inst/Conf-files/Unpacked/halF-conf/Half-inst/trig-aWait/"
    "Trig-pend\n|/ Err?=(none)/Reinst-required (Status,Err: uppercase=bad)\n||/ Name Version Architecture Description"
)
_FIELD = re.compile(r"\$\{([\w:-]+)(?:;-?\d+)?\}")
_LETTERS = {"installed": "i", "config-files": "c", "unpacked": "U", "half-configured": "F"}


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of the programs."""
    if name == "dkms":
        return _dkms(host, arguments)
    require_debian(host, name)
    return _dpkg(host, arguments) if name == "dpkg" else _query(host, arguments)


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
    return logged(host, "dpkg", arguments, lambda: _change(host, options))


def _compare(words: list[str]) -> int:
    if len(words) != 3:
        raise UsageError("--compare-versions takes three arguments: <version> <relation> <version>")
    try:
        return 0 if holds(words[0], words[1], words[2]) else 1
    except KeyError:
        raise Failure("dpkg: error: --compare-versions bad relation", 2) from None


def _change(host: HostState, options: Options) -> int:
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


# -- dkms ------------------------------------------------------------------------------------------------------
def _dkms(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "m:v:k:a:q", ("all", "force", "kernelver=", "arch=", "kernelsourcedir=", "no-depmod"))
    if not options.rest:
        raise UsageError("no action was given")
    verb = options.rest[0]
    module, version = _named(options)
    kernel = options.value("k", "kernelver") or host.read("/proc/sys/kernel/osrelease", "").strip()
    if verb == "status":
        return _dkms_status(host, module, version, options.value("k", "kernelver"))
    if verb not in ("build", "install", "uninstall", "remove", "add", "autoinstall"):
        raise UsageError(f"the lab's dkms has status, install, build, uninstall, remove and autoinstall, not {verb!r}")
    return logged(host, "dkms", arguments, lambda: _dkms_change(host, verb, version, kernel, every=options.has("all")))


def _named(options: Options) -> tuple[str | None, str | None]:
    """Module and version: `-m nvidia -v 1`, `nvidia/1`, `nvidia -v 1`."""
    word = options.value("m") or (options.rest[1] if len(options.rest) > 1 else None)
    if word is None:
        return None, options.value("v")
    module, _, version = word.partition("/")
    return module, version or options.value("v")


def _dkms_status(host: HostState, module: str | None, version: str | None, kernel: str | None) -> int:
    if module not in (None, dkms.NAME):
        return 0
    for each in dkms.versions(host):
        if version not in (None, each):
            continue
        kernels = [k for k in dkms.built(host, each) if kernel in (None, k)]
        if not kernels and kernel is None:
            print(f"{dkms.NAME}/{each}: added")
        for name in kernels:
            print(f"{dkms.NAME}/{each}, {name}, x86_64: installed")
    return 0


def _dkms_change(host: HostState, verb: str, version: str | None, kernel: str, *, every: bool) -> int:
    if verb == "autoinstall":
        dkms.autoinstall(host, kernel)
        return 0
    if version is None:
        raise Failure("Error! Invalid number of parameters passed.\nUsage: " + verb + " <module>/<module-version>", 1)
    dkms.source_of(host, version)
    if verb in ("build", "install"):
        for each in [k for k in host.kernels() if has_headers(host, k)] if every else [kernel]:
            dkms.install(host, version, each)
    elif verb == "uninstall":
        dkms.uninstall(host, version, kernel)
    elif verb == "remove":
        if every or dkms.built(host, version) in ([kernel], []):
            dkms.remove(host, version)
        else:
            dkms.uninstall(host, version, kernel)
    return 0
