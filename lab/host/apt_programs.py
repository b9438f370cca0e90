"""apt, apt-get, apt-cache and apt-mark of a lab's system, with the options that careful scripts use."""

from __future__ import annotations

import fnmatch
import importlib
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import apt, dpkg, network
from .apt import Cache, Change, Version, version_of_file
from .dpkg import Database, require_debian, require_root
from .program import Failure, Options, UsageError, logged
from .state import HostState
from .versions import compare
from .versions import key as version_key

_SHORT = "yqsfdVmo:t:a:"
_LONG = (
    "yes", "assume-yes", "quiet", "simulate", "just-print", "dry-run", "no-act", "fix-broken", "download-only",
    "no-install-recommends", "install-recommends", "allow-downgrades", "allow-change-held-packages", "no-remove", "purge",
    "auto-remove", "autoremove", "only-upgrade", "reinstall", "no-upgrade", "allow-unauthenticated", "option=",
    "show-progress", "verbose-versions", "no-show-upgraded", "allow-releaseinfo-change", "assume-no", "force-yes",
    "error-on=", "fix-missing", "target-release=", "with-new-pkgs", "no-release-info", "format=",
)  # fmt: skip
ARCHIVES = "/var/cache/apt/archives"
_OPTIONS = re.compile(
    r"(?i)(DPkg::Lock::Timeout|Acquire::Retries|Acquire::\w+::Timeout|Acquire::https?::Proxy|Dpkg::Options::|"
    r"Dpkg::Use-Pty|APT::Install-Recommends|APT::Get::\S+|APT::Update::Error-Mode|Acquire::ForceIPv4|"
    r"Dir::[\w:]+|APT::Color|Dpkg::Progress-Fancy|Acquire::Languages|Acquire::Check-Valid-Until|DPkg::options)(?:=(.*)|$)"
)


class _Asked:
    """The options of one call."""

    def __init__(self, arguments: list[str]) -> None:
        options = Options(_split(arguments), _SHORT, _LONG)
        if not options.rest:
            raise UsageError("no operation was given")
        self.verb, self.names = options.rest[0], options.rest[1:]
        self.settings: dict[str, str] = {}
        given = [value for name, value in options.given if name in ("o", "option")]
        apt.look_at(given)
        for text in given:
            match = _OPTIONS.match(text)
            if match is None:
                raise UsageError(f"the lab's apt-get doesn't know the setting {text!r}")
            self.settings[match[1].lower()] = match[2] or ""
        self.yes = options.has("y", "yes", "assume-yes")
        self.quiet = sum(name in ("q", "quiet") for name, _ in options.given)
        self.simulate = options.has("s", "simulate", "just-print", "dry-run", "no-act")
        self.fix_broken = options.has("f", "fix-broken")
        self.recommends = not options.has("no-install-recommends") and self.settings.get(
            "apt::install-recommends", "true"
        ).strip('"') not in ("false", "0", "no")
        self.downgrades, self.held = options.has("allow-downgrades"), options.has("allow-change-held-packages")
        self.no_remove, self.purge = options.has("no-remove"), options.has("purge")
        self.only_upgrade, self.reinstall = options.has("only-upgrade"), options.has("reinstall")
        self.auto_remove = options.has("auto-remove", "autoremove")
        self.download_only = options.has("d", "download-only")
        self.format = options.value("format") or ""
        self.strict_update = self.settings.get("apt::update::error-mode") == "any" or options.value("error-on") == "any"

    @property
    def lock_seconds(self) -> float:
        """How long to wait for dpkg's lock."""
        return float(self.settings.get("dpkg::lock::timeout", "0").strip('"') or 0)


def _split(arguments: list[str]) -> list[str]:
    """`-qq`, `-q=2` and `-oName=Value` as getopt takes them."""
    return ["-qq" if re.fullmatch(r"-q=\d", word) else word for word in arguments]


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of apt's programs."""
    require_debian(host, name)
    work: dict[str, Callable[[HostState, list[str]], int]] = {
        "apt": _apt, "apt-get": _apt_get, "apt-cache": _apt_cache, "apt-mark": _apt_mark,
    }  # fmt: skip
    return work[name](host, arguments)


def preload() -> None:
    """Have what installs packages, which a query does without."""
    importlib.import_module("host.dpkg_steps")


def _apt(host: HostState, arguments: list[str]) -> int:
    """What people type: apt-get's operations and apt-cache's, and a list of its own."""
    print("\nWARNING: apt does not have a stable CLI interface. Use with caution in scripts.\n", file=sys.stderr)
    if arguments[:1] == ["list"]:
        return _list(host, arguments[1:])
    return (_apt_cache if arguments[:1] in (["search"], ["show"], ["policy"]) else _apt_get)(host, arguments)


def _list(host: HostState, words: list[str]) -> int:
    options = Options(words, "", ("installed",))
    if not options.has("installed"):
        raise UsageError("the lab's `apt list` has --installed alone")
    database = Database(host)
    print("Listing...")
    for package in sorted(database.packages.values(), key=lambda one: one.name):
        if package.present and any(fnmatch.fnmatchcase(package.name, one) for one in options.rest or ["*"]):
            automatic = ",automatic" if package.name in database.automatic else ""
            print(f"{package.name}/now {package.version} {package.architecture} [installed{automatic}]")
    return 0


# -- apt-get ---------------------------------------------------------------------------------------------------
def _apt_get(host: HostState, arguments: list[str]) -> int:
    asked = _Asked(arguments)
    if asked.verb == "clean":
        host.remove_tree(ARCHIVES)
    if asked.verb in ("clean", "autoclean"):
        return 0
    work: dict[str, Callable[[HostState, _Asked], int]] = {
        "update": _update, "install": _install, "remove": _remove, "purge": _remove, "autoremove": _autoremove,
        "autopurge": _autoremove, "upgrade": _upgrade, "dist-upgrade": _upgrade, "full-upgrade": _upgrade, "check": _check,
        "download": _download, "indextargets": _index_targets,
    }  # fmt: skip
    if asked.verb not in work:
        raise Failure(f"E: Invalid operation {asked.verb}", 100)
    if asked.simulate or asked.verb in ("check", "indextargets"):
        return work[asked.verb](host, asked)
    require_root(dpkg.LOCK)

    def locked() -> int:
        if asked.verb in ("update", "download"):
            return work[asked.verb](host, asked)
        with dpkg.locked(host, asked.lock_seconds):
            return work[asked.verb](host, asked)

    return logged(host, "apt-get", arguments, locked)


def _index_targets(host: HostState, asked: _Asked) -> int:
    """The list of packages of each repository, and the entry that names it."""
    for path, source in apt.entries(host):
        print(asked.format.replace("$(REPO_URI)", f"{source.url}/").replace("$(SOURCESENTRY)", f"{path}:1"))
    return 0


def _say(asked: _Asked, text: str) -> None:
    if asked.quiet < 2:
        print(text, flush=True)


def _pause(host: HostState, share: float = 1.0) -> None:
    """What the fault apt-slow takes."""
    value = network.fault(host, "apt-slow")
    if value:
        time.sleep(float(value) * share)


def _update(host: HostState, asked: _Asked) -> int:
    warnings: list[str] = []
    errors: list[str] = []
    found = apt.sources(host)
    for number, source in enumerate(found, 1):
        _pause(host, 1 / len(found))
        _fetch_list(host, asked, number, source, warnings, errors)
    _say(asked, "Reading package lists...")
    for text in warnings + errors:
        print(text, file=sys.stderr)
    if errors:
        return 100
    if any("Failed to fetch" in text for text in warnings):
        kind = "E" if asked.strict_update else "W"
        print(
            f"{kind}: Some index files failed to download. They have been ignored, or old ones used instead.",
            file=sys.stderr,
        )
        return 100 if asked.strict_update else 0
    return 0


def _fetch_list(
    host: HostState, asked: _Asked, number: int, source: apt.Source, warnings: list[str], errors: list[str]
) -> None:
    if name := network.offline(host, source.url):
        _say(asked, f"Err:{number} {source.place} InRelease\n  Temporary failure resolving '{name}'")
        warnings.append(f"W: Failed to fetch {source.release}  Temporary failure resolving '{name}'")
        return
    repository = apt.repository_of(host, source)
    if repository is None or repository.get("subscription"):
        if repository is None:
            _say(asked, f"Err:{number} {source.place} Release\n  404  Not Found")
            errors.append(f"E: The repository '{source.place} Release' does not have a Release file.")
            return
        _say(asked, f"Err:{number} {source.place} InRelease\n  401  Unauthorized")
        errors.append(f"E: Failed to fetch {source.release}  401  Unauthorized")
        errors.append(f"E: The repository '{source.place} InRelease' is not signed.")
        return
    if missing := apt.missing_key(host, source, repository):
        words = f"The following signatures couldn't be verified because the public key is not available: NO_PUBKEY {missing}"
        _say(asked, f"Err:{number} {source.place} InRelease\n  {words}")
        warnings.append(f"W: GPG error: {source.place} InRelease: {words}")
        errors.append(f"E: The repository '{source.place} InRelease' is not signed.")
        return
    there = host.rooted(source.list_file).exists()
    _say(asked, f"{'Hit' if there else 'Get'}:{number} {source.place} InRelease")
    host.write(source.list_file, f"# {source.place}\n")


def _versions_of(cache: Cache, asked: _Asked, words: list[str]) -> list[Version]:
    """What was asked for, by name, NAME=VERSION, pattern or file.

    Raises:
        Failure: there is no such package, or no such version.
    """
    found = []
    for word in words:
        if word.endswith(".deb"):
            found.append(version_of_file(cache.host, word))
            continue
        name, equals, wanted = word.partition("=")
        name = name.removesuffix(":amd64")
        if equals:
            found.append(_exact(cache, name, wanted))
        elif "*" in name:
            found += [
                v for n in cache.names() if fnmatch.fnmatchcase(n, name) and (v := cache.candidate(n)) is not None
            ]
        elif (version := _plain(cache, asked, name)) is not None:
            found.append(version)
    return found


def _exact(cache: Cache, name: str, wanted: str) -> Version:
    version = cache.version_for(name, wanted)
    if version is None:
        if not cache.versions(name):
            raise Failure(f"E: Unable to locate package {name}", 100)
        raise Failure(f"E: Version '{wanted}' for '{name}' was not found", 100)
    return version


def _plain(cache: Cache, asked: _Asked, name: str) -> Version | None:
    """A package by its name alone; None when there is nothing to do."""
    installed = cache.database.get(name)
    candidate = cache.candidate(name)
    if candidate is None and installed is None:
        providers = cache.providers(name)
        if len(providers) == 1:
            print(f"Note, selecting '{providers[0]}' instead of '{name}'")
            return cache.candidate(providers[0])
        if providers:
            raise Failure(
                f"Package {name} is a virtual package provided by:\n"
                + "".join(f"  {provider}\n" for provider in providers)
                + f"You should explicitly select one to install.\n\nE: Package '{name}' has no installation candidate",
                100,
            )
        if cache.versions(name):
            raise Failure(f"E: Package '{name}' has no installation candidate", 100)
        raise Failure(f"E: Unable to locate package {name}", 100)
    if installed is not None:
        newer = candidate is not None and candidate.version != installed.version
        if installed.hold and newer and not asked.held:
            newer = False
        if not newer and not asked.reinstall:
            print(f"{name} is already the newest version ({installed.version}).")
            cache.database.automatic.discard(name)
            return None
    elif asked.only_upgrade:
        print(f"Skipping {name}, it is not installed and only upgrades are requested.")
        return None
    return candidate


def _install(host: HostState, asked: _Asked) -> int:
    cache = Cache(host)
    _say(asked, "Reading package lists...\nBuilding dependency tree...\nReading state information...")
    _require_whole(cache, asked)
    removals = [word[:-1] for word in asked.names if word.endswith("-") and cache.database.get(word[:-1])]
    words = [word for word in asked.names if word[:-1] not in removals]
    change = Change(cache, recommends=asked.recommends)
    change.want(_versions_of(cache, asked, words))
    for name in removals:
        change.drop(cache.database.packages[name])
    return _carry_out(host, cache, change, asked)


def _require_whole(cache: Cache, asked: _Asked) -> None:
    """Refuse to go on where dpkg was interrupted. Packages that are merely not configured are so on the way.

    Raises:
        Failure: it was.
    """
    if cache.database.interrupted and not asked.fix_broken:
        raise Failure(
            "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem.", 100
        )


def _upgrade(host: HostState, asked: _Asked) -> int:
    cache = Cache(host)
    _require_whole(cache, asked)
    change = Change(cache, recommends=asked.recommends)
    newer = []
    for package in cache.database.packages.values():
        candidate = cache.candidate(package.name) if package.present and not package.hold else None
        if candidate is not None and candidate.version != package.version:
            newer.append(candidate)
    change.want(newer)
    if asked.verb == "upgrade" and change.remove:
        raise Failure("E: the lab's `apt-get upgrade` would remove packages; use dist-upgrade", 100)
    return _carry_out(host, cache, change, asked)


def _remove(host: HostState, asked: _Asked) -> int:
    cache = Cache(host)
    purge = asked.verb == "purge" or asked.purge
    change = Change(cache)
    for word in asked.names:
        _mark_removed(cache, change, word, purge)
    if asked.auto_remove:
        _drop_unneeded(cache, change)
    return _carry_out(host, cache, change, asked, purge=purge)


def _mark_removed(cache: Cache, change: Change, word: str, purge: bool) -> None:
    pattern = any(character in word for character in "*?[^")
    if pattern:
        # A regular expression, or a glob, as apt-get takes either.
        fits = re.compile(word.replace("*", ".*").replace("..*", ".*"))
        found = [p for name, p in cache.database.packages.items() if fits.search(name) and (p.present or purge)]
    else:
        found = [p for p in [cache.database.packages.get(word.removesuffix(":amd64"))] if p is not None]
    if not found and not pattern and not cache.versions(word):
        raise Failure(f"E: Unable to locate package {word}", 100)
    if not any(p.present for p in found):
        print(f"Package '{word}' is not installed, so not removed")
    for package in found:
        if package.present:
            change.drop(package)
        elif purge:
            change.remove[package.name] = package


def _drop_unneeded(cache: Cache, change: Change) -> None:
    gone = set(change.remove)
    while True:
        rest = Database(cache.host)
        rest.packages = {n: p for n, p in cache.database.packages.items() if n not in gone}
        more = [p for p in apt.unneeded(rest) if p.name not in gone]
        if not more:
            return
        for package in more:
            change.drop(cache.database.packages[package.name])
            gone.add(package.name)


def _autoremove(host: HostState, asked: _Asked) -> int:
    cache = Cache(host)
    change = Change(cache)
    for word in asked.names:
        _mark_removed(cache, change, word, asked.purge)
    _drop_unneeded(cache, change)
    return _carry_out(host, cache, change, asked, purge=asked.purge or asked.verb == "autopurge")


def _check(host: HostState, asked: _Asked) -> int:
    _require_whole(Cache(host), asked)
    return 0


def _download(host: HostState, asked: _Asked) -> int:
    cache = Cache(host)
    for version in _versions_of(cache, asked, asked.names):
        _fetch(host, asked, 1, version)
        if network.fault(host, "disk-full") is not None:
            raise Failure(
                f"E: Failed to fetch {version.source.url}/{version.name}.deb  Error writing to file - write (28: No space left on device)",
                100,
            )
        (Path.cwd() / _file_name(version)).write_text(_content(version), encoding="utf-8")
    return 0


def _file_name(version: Version) -> str:
    return f"{version.name}_{version.version.replace(':', '%3a')}_{version.record['architecture']}.deb"


def _content(version: Version) -> str:
    return network.package_file(version.name, version.version, version.group).decode()


# -- carrying out ----------------------------------------------------------------------------------------------
def _carry_out(host: HostState, cache: Cache, change: Change, asked: _Asked, *, purge: bool = False) -> int:
    database = cache.database
    _announce(cache, change, asked)
    _require_permission(cache, change, asked)
    if asked.simulate:
        _simulate(database, change, purge)
        return 0
    nothing = not change.install and not change.remove and not database.broken()
    if not nothing and not asked.yes:
        raise Failure("Do you want to continue? [Y/n] Abort.", 1)
    downloads = [version for version in change.install.values() if version.source.suite != "now"]
    _require_space(host, downloads)
    sizes = [int(float(version.record.get("size", 1)) * 1e6) for version in downloads]
    if downloads:
        _say(asked, f"Need to get {_in_units(sum(sizes))}B of archives.")
    for number, version in enumerate(downloads, 1):
        _pause(host, sizes[number - 1] / sum(sizes))
        _fetch(host, asked, number, version)
        # apt-get, unlike apt, leaves them there until `apt-get clean`.
        host.write(f"{ARCHIVES}/{_file_name(version)}", _content(version))
    if asked.download_only:
        return 0
    from .dpkg_steps import perform

    _mark(database, change)
    return perform(host, database, change, purge=purge, quiet=asked.quiet >= 2, fix=asked.fix_broken)


def _in_units(size: float) -> str:
    """As apt's SizeToStr: `4103 M`, `76.1 k`, in units of 1000 and without separators in the locale C."""
    for unit in ("", "k", "M", "G"):
        if size < 100 and unit:
            return f"{size:.1f} {unit}"
        if size < 10000:
            break
        size /= 1000
    return f"{size:.0f} {unit}"


def _mark(database: Database, change: Change) -> None:
    for name in change.install:
        if name in change.asked:
            database.automatic.discard(name)
        elif not database.get(name):
            database.automatic.add(name)


def _announce(cache: Cache, change: Change, asked: _Asked) -> None:
    database = cache.database
    new = [n for n in change.install if not database.get(n)]
    better = [n for n, v in change.install.items() if (p := database.get(n)) and compare(v.version, p.version) >= 0]
    worse = [n for n, v in change.install.items() if (p := database.get(n)) and compare(v.version, p.version) < 0]
    gone = [n for n, p in change.remove.items() if p.present]
    for title, names in (
        ("The following packages will be REMOVED:", gone),
        ("The following NEW packages will be installed:", new),
        ("The following packages will be upgraded:", better),
        ("The following packages will be DOWNGRADED:", worse),
    ):
        if names:
            _say(asked, f"{title}\n  {' '.join(sorted(names))}")
    _say(
        asked,
        f"{len(better)} upgraded, {len(new)} newly installed, {f'{len(worse)} downgraded, ' if worse else ''}"
        f"{len(gone)} to remove and 0 not upgraded.",
    )


def _require_permission(cache: Cache, change: Change, asked: _Asked) -> None:
    """What `-y` doesn't cover.

    Raises:
        Failure: held packages would be changed, packages downgraded, or removed with --no-remove.
    """
    database = cache.database
    touched = [p for n in [*change.install, *change.remove] if (p := database.get(n)) and p.hold]
    if touched and not asked.held:
        raise Failure("E: Held packages were changed and -y was used without --allow-change-held-packages.", 100)
    down = any((p := database.get(n)) and compare(v.version, p.version) < 0 for n, v in change.install.items())
    if down and not asked.downgrades:
        raise Failure("E: Packages were downgraded and -y was used without --allow-downgrades.", 100)
    if asked.no_remove and any(p.present for p in change.remove.values()):
        raise Failure("E: Packages need to be removed but remove is disabled.", 100)


def _simulate(database: Database, change: Change, purge: bool) -> None:
    for name in change.remove:
        print(f"{'Purg' if purge else 'Remv'} {name} [{database.packages[name].version}]")
    for name, version in change.install.items():
        old = database.get(name)
        print(
            f"Inst {name} {f'[{old.version}] ' if old else ''}({version.version} {version.origin}:{version.source.suite} [amd64])"
        )
    for name, version in change.install.items():
        print(f"Conf {name} ({version.version} {version.origin}:{version.source.suite} [amd64])")


def _require_space(host: HostState, downloads: list[Version]) -> None:
    free = network.fault(host, "disk-full")
    if free is not None and downloads:
        raise Failure("E: You don't have enough free space in /var/cache/apt/archives/.", 100)


def _fetch(host: HostState, asked: _Asked, number: int, version: Version) -> None:
    url = f"{version.source.url}/{version.name}_{version.version}_{version.record['architecture']}.deb"
    _say(asked, f"Get:{number} {version.source.place} amd64 {version.name} amd64 {version.version}")
    if name := network.offline(host, version.source.url):
        raise Failure(
            f"E: Failed to fetch {url}  Temporary failure resolving '{name}'\n"
            "E: Unable to fetch some archives, maybe run apt-get update or try with --fix-missing?",
            100,
        )
    wrong = network.fault(host, "download-corrupt")
    if wrong is not None and wrong in url:
        raise Failure(
            f"E: Failed to fetch {url}  Hash Sum mismatch\nE: Unable to fetch some archives, maybe run apt-get update "
            "or try with --fix-missing?",
            100,
        )


# -- apt-cache -------------------------------------------------------------------------------------------------
def _apt_cache(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "qo:n", ("quiet", "names-only", "no-all-versions", "option=", "installed"))
    if not options.rest:
        raise UsageError("no operation was given")
    verb, names = options.rest[0], options.rest[1:]
    apt.look_at(value for name, value in options.given if name in ("o", "option"))
    cache = Cache(host)
    if verb == "policy":
        return _policy(cache, names)
    if verb == "madison":
        for name in names:
            for version in cache.versions(name):
                print(f"{name:>10} | {version.version} | {version.source.url} {version.source.suite} amd64 Packages")
        return 0
    if verb in ("show", "showpkg", "depends"):
        return _show(cache, names, only_one=options.has("no-all-versions"))
    if verb == "pkgnames":
        print("\n".join(n for n in cache.names() if n.startswith(names[0] if names else "")))
        return 0
    if verb == "search":
        for name in cache.names():
            if all(re.search(pattern, name) for pattern in names):
                print(f"{name} - {name}")
        return 0
    raise UsageError(f"the lab's apt-cache has policy, madison, show, search and pkgnames, not {verb!r}")


def _policy(cache: Cache, names: list[str]) -> int:
    if not names:
        print("Package files:\n 100 /var/lib/dpkg/status\n     release a=now")
        for source in apt.sources(cache.host):
            if cache.host.rooted(source.list_file).exists():
                print(f" 500 {source.url} {source.suite} amd64 Packages")
        return 0
    for name in names:
        installed, versions, candidate = cache.database.get(name), cache.versions(name), cache.candidate(name)
        if installed is None and not versions:
            continue  # apt-cache prints nothing for what it has never heard of
        chosen = candidate.version if candidate else installed.version if installed else "(none)"
        print(
            f"{name}:\n  Installed: {installed.version if installed else '(none)'}\n  Candidate: {chosen}\n  Version table:"
        )
        numbers = list(dict.fromkeys([*(v.version for v in versions), *([installed.version] if installed else [])]))
        for number in sorted(numbers, key=version_key, reverse=True):
            same = [v for v in versions if v.version == number]
            mark = "***" if installed and installed.version == number else "   "
            highest = max([cache.priority(name, number, v) for v in same] or [cache.priority(name, number, None)])
            print(f" {mark} {number} {highest}")
            for version in same:
                pin = cache.priority(name, number, version)
                print(f"        {pin} {version.source.url} {version.source.suite} amd64 Packages")
            if mark == "***":
                print("        100 /var/lib/dpkg/status")
    return 0


def _show(cache: Cache, names: list[str], *, only_one: bool) -> int:
    status = 0
    for name in names:
        word, _, wanted = name.partition("=")
        found = [v for v in cache.versions(word) if not wanted or v.version == wanted]
        if not found:
            print(f"E: No packages found\nN: Unable to locate package {word}", file=sys.stderr)
            status = 100
        for version in found[:1] if only_one else found:
            print(
                f"Package: {version.name}\nArchitecture: {version.record['architecture']}\nVersion: {version.version}"
            )
            for key in ("depends", "recommends", "conflicts", "provides"):
                if version.record.get(key):
                    print(f"{key.capitalize()}: {version.record[key]}")
            content = network.package_file(version.name, version.version, version.group)
            print(f"Size: {len(content)}\nSHA256: {network.known_digest(cache.host, content)}\n")
    return status


# -- apt-mark --------------------------------------------------------------------------------------------------
def _apt_mark(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "qo:y", ("quiet", "option=", "yes"))
    if not options.rest:
        raise UsageError("no operation was given")
    verb, names = options.rest[0], options.rest[1:]
    database = Database(host)
    everything = [p for _, p in sorted(database.packages.items()) if p.present]
    shown = {
        "showhold": [p for p in everything if p.hold],
        "showmanual": [p for p in everything if p.name not in database.automatic],
        "showauto": [p for p in everything if p.name in database.automatic],
        "showheld": [p for p in everything if p.hold],
    }
    if verb in shown:
        for package in shown[verb]:
            if not names or package.name in names:
                print(package.name)
        return 0
    if verb not in ("hold", "unhold", "manual", "auto"):
        raise UsageError(f"the lab's apt-mark has hold, unhold, manual, auto and show..., not {verb!r}")
    require_root(dpkg.LOCK)
    return logged(host, "apt-mark", arguments, lambda: _mark_as(database, verb, names))


def _mark_as(database: Database, verb: str, names: list[str]) -> int:
    for name in names:
        package = database.packages.get(name.removesuffix(":amd64"))
        if package is None or not package.present:
            raise Failure(f"E: Unable to locate package {name}\nE: No packages found", 100)
        if verb in ("hold", "unhold"):
            wanted = verb == "hold"
            print(
                f"{package.name} was already {'set on' if wanted else 'not on'} hold."
                if package.hold == wanted
                else f"{package.name} set on hold."
                if wanted
                else f"Canceled hold on {package.name}."
            )
            package.hold = wanted
        elif verb == "manual":
            database.automatic.discard(package.name)
            print(f"{package.name} set to manually installed.")
        else:
            database.automatic.add(package.name)
            print(f"{package.name} set to automatically installed.")
    database.save()
    return 0
