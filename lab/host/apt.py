"""apt's view of packages: sources, lists, pins, which version is the candidate, what an installation changes.

Sources are read from /etc/apt as apt does, keys from the keyrings that they name. A repository's packages are known once
`apt-get update` has fetched its list into /var/lib/apt/lists.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import network
from .dpkg import Database, Package, paragraphs
from .program import Failure
from .state import HostState
from .versions import Relation, compare, key, relations

_PLACES = {
    "State::lists": "/var/lib/apt/lists",
    "Etc::sourcelist": "/etc/apt/sources.list",
    "Etc::sourceparts": "/etc/apt/sources.list.d",
    "Etc::preferencesparts": "/etc/apt/preferences.d",
}
#: Where this call of a program looks, by the settings Dir::….
PLACES = dict(_PLACES)
_TRUSTED = "/etc/apt/trusted.gpg.d"
# apt's booleans (apt-pkg/contrib/strutl.cc, StringToBool).
_ON, _OFF = ("yes", "true", "with", "on", "enable", "1"), ("no", "false", "without", "off", "disable", "0")
_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)")


class Source(NamedTuple):
    """One repository as /etc/apt names it; `signed_by` are the keyrings that it is checked with, none: the trusted ones;
    `components`: those of its suite that the system takes, none of a repository that has no suites."""

    url: str
    suite: str
    signed_by: tuple[str, ...] = ()
    trusted: bool = False
    components: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """`http://archive.ubuntu.com/ubuntu noble`, as apt's messages have it."""
        return f"{self.url} {self.suite}"

    @property
    def release(self) -> str:
        """The address of its InRelease file."""
        return f"{self.url}/InRelease" if self.suite == "/" else f"{self.url}/dists/{self.suite}/InRelease"

    @property
    def list_file(self) -> str:
        """Its list in /var/lib/apt/lists."""
        name = (
            re.sub(r"^[a-z]+://", "", f"{self.url}/{self.suite.strip('/')}".rstrip("/"))
            .replace("_", "%5f")
            .replace("/", "_")
        )
        return f"{PLACES['State::lists']}/{name}_Packages"


def look_at(settings: Iterable[str]) -> None:
    """Take the places of a call from its settings, the others as they are by default."""
    given = dict(text.removeprefix("Dir::").partition("=")[::2] for text in settings)
    PLACES.update({name: given.get(name, place) for name, place in _PLACES.items()})


def sources(host: HostState) -> list[Source]:
    """The repositories that a system uses, each once.

    Raises:
        Failure: as of `entries`.
    """
    return list(dict.fromkeys(source for _, source in entries(host)))


def entries(host: HostState) -> list[tuple[str, Source]]:
    """Each entry for a repository, with the file that has it.

    Raises:
        Failure: a line that apt doesn't understand, or two that disagree about a repository's key.
    """
    found: list[tuple[str, Source]] = []
    folder = host.rooted(PLACES["Etc::sourceparts"])
    files = [host.rooted(PLACES["Etc::sourcelist"]), *(sorted(folder.iterdir()) if folder.is_dir() else [])]
    for path in files:
        if not path.is_file():
            continue
        name, text = host.unrooted(path), path.read_text(encoding="utf-8")
        if path.suffix == ".sources":
            found += [(name, source) for source in _deb822(text)]
        elif path.suffix == ".list":
            found += [(name, source) for source in _one_line(text, name)]
    _require_agreement([source for _, source in found])
    return found


def _require_agreement(found: list[Source]) -> None:
    known: dict[str, Source] = {}
    for source in found:
        other = known.setdefault(source.place, source)
        if other.signed_by != source.signed_by:
            raise Failure(
                f"E: Conflicting values set for option Signed-By regarding source {source.url}/ {source.suite}: "
                f"{','.join(other.signed_by)} != {','.join(source.signed_by)}\nE: The list of sources could not be read.",
                100,
            )


def _one_line(text: str, path: str) -> list[Source]:
    found = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line or line.startswith("deb-src"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise Failure(
                f"E: Malformed entry {number} in list file {path} (type)\nE: The list of sources could not be read.",
                100,
            )
        options = dict(word.partition("=")[::2] for word in (match[1] or "").split())
        keys = tuple(options.get("signed-by", "").split(",")) if options.get("signed-by") else ()
        url = match[2].rstrip("/").replace("$(ARCH)", "amd64")
        if options.get("arch", "amd64").split(",").count("amd64"):
            found.append(
                Source(url, match[3], keys, options.get("trusted", "").lower() in _ON, tuple(match[4].split()))
            )
    return found


def _deb822(text: str) -> list[Source]:
    found = []
    for fields in paragraphs(text):
        if "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "").lower() in _OFF:
            continue
        keys = tuple(fields.get("Signed-By", "").split())
        components = tuple(fields.get("Components", "").split())
        found += [
            Source(url.rstrip("/"), suite, keys, fields.get("Trusted", "").lower() in _ON, components)
            for url in fields.get("URIs", "").split()
            for suite in fields.get("Suites", "").split()
        ]
    return found


def repository_of(host: HostState, source: Source) -> dict[str, Any] | None:
    """The network's repository behind a source; None when there is nothing at its address."""
    for repository in network.data(host)["repositories"]:
        if (repository["url"], repository["suite"]) == (source.url, source.suite):
            found: dict[str, Any] = repository
            return found
    return None


def missing_key(host: HostState, source: Source, repository: dict[str, Any]) -> str | None:
    """The long id of the key that a repository is signed with, when none of the source's keyrings has it."""
    if source.trusted:
        return None
    wanted = network.key_named(host, repository["key"]).fingerprint
    trusted = host.rooted(_TRUSTED)
    named = [host.rooted(word) for word in source.signed_by if word.startswith("/")]
    paths = named or (sorted(trusted.iterdir()) if trusted.is_dir() else [])
    have = {key.fingerprint for path in paths if path.is_file() for key in network.keys_in(path.read_bytes())}
    signers = have.intersection(source.signed_by) if len(named) < len(source.signed_by) else have
    return None if wanted in signers else wanted[-16:]


# -- what can be installed -------------------------------------------------------------------------------------
class Version(NamedTuple):
    """A version of a package in a repository."""

    name: str
    version: str
    group: str
    record: dict[str, Any]
    source: Source
    origin: str = ""

    @property
    def provides(self) -> set[str]:
        """The names that it can stand for."""
        return {self.name, *(clause[0].name for clause in relations(self.record.get("provides", "")))}


class _Pin(NamedTuple):
    patterns: tuple[str, ...]
    what: str
    priority: int

    def concerns(self, version: Version | None, name: str, text: str) -> bool:
        """Whether the pin is about a package, and about this version of it."""
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns):
            return False
        kind, _, wanted = self.what.partition(" ")
        if kind == "version":
            return fnmatch.fnmatchcase(text, wanted.strip())
        if version is None:
            return False
        if kind == "origin":
            return wanted.strip().strip('"') in ("", re.sub(r"^[a-z]+://([^/]+).*", r"\1", version.source.url))
        values = dict(part.strip().partition("=")[::2] for part in wanted.split(","))
        have = {"o": version.origin, "a": version.source.suite, "n": version.source.suite, "l": version.origin}
        return all(fnmatch.fnmatchcase(have.get(name, ""), value.strip('"')) for name, value in values.items())


def _pins(host: HostState) -> list[_Pin]:
    folder = host.rooted(PLACES["Etc::preferencesparts"])
    files = [host.rooted("/etc/apt/preferences"), *(sorted(folder.iterdir()) if folder.is_dir() else [])]
    found = []
    for path in files:
        if not path.is_file() or path.suffix not in ("", ".pref") and "pinning" not in path.name:
            continue
        for fields in paragraphs(path.read_text(encoding="utf-8")):
            patterns = tuple(word for word in fields.get("Package", "").split() if not word.startswith("src:"))
            found.append(_Pin(patterns, fields.get("Pin", ""), int(fields.get("Pin-Priority", "500"))))
    return found


class Cache:
    """What apt knows: the database, the lists that were fetched, the pins."""

    def __init__(self, host: HostState) -> None:
        self.host = host
        self.database = Database(host)
        self._pins = _pins(host)
        self._available: dict[str, list[Version]] = {}
        missing = network.fault(host, "package-missing")
        self._missing = None if missing is None else missing or "*"
        for source in sources(host):
            repository = repository_of(host, source)
            if repository is not None and host.rooted(source.list_file).exists():
                self._take(source, repository)

    def _take(self, source: Source, repository: dict[str, Any]) -> None:
        groups = network.data(self.host)["groups"]
        for group in network.groups_of(repository, source.components):
            for name, records in groups[group]["packages"].items():
                for record in records:
                    self._offer(Version(name, record["version"], group, record, source, repository["origin"]))
            if "kernels" in groups[group]:
                self._kernels(source, repository, group, groups[group])

    def _kernels(self, source: Source, repository: dict[str, Any], group: str, about: dict[str, Any]) -> None:
        """Packages for the kernels that the system has, besides those in the list."""
        running = self.host.read("/proc/sys/kernel/osrelease", "").strip()
        for kernel in {*self.host.kernels(), running}:
            if not re.fullmatch(about["kernels"], kernel):
                continue
            for template, body in about["templates"].items():
                name, record = record_for_kernel(template, body, kernel)
                if name not in about["packages"]:
                    self._offer(Version(name, record["version"], group, record, source, repository["origin"]))

    def _offer(self, version: Version) -> None:
        if self._missing is not None:
            found = f"{version.name}/{version.version}" if "/" in self._missing else version.name
            if fnmatch.fnmatchcase(found, self._missing):
                return
        self._available.setdefault(version.name, []).append(version)

    # -- versions ----------------------------------------------------------------------------------------
    def versions(self, name: str) -> list[Version]:
        """The versions of a package that can be had, newest first."""
        return sorted(self._available.get(name, []), key=lambda version: key(version.version), reverse=True)

    def names(self) -> list[str]:
        """All packages that can be had."""
        return sorted(self._available)

    def providers(self, name: str) -> list[str]:
        """The packages that can stand for a name and aren't called so."""
        return sorted(
            {v.name for found in self._available.values() for v in found if name in v.provides and v.name != name}
        )

    def priority(self, name: str, text: str, version: Version | None) -> int:
        """A version's priority: what is installed alone has 100, what is in a repository 500, unless a pin says otherwise."""
        fitting = [pin.priority for pin in self._pins if pin.concerns(version, name, text)]
        if fitting:
            return fitting[0]
        return 500 if version is not None else 100

    def candidate(self, name: str) -> Version | None:
        """The version that apt would install; None when none is, or the installed one is in no repository any more."""
        installed = self.database.get(name)
        found = [(self.priority(name, v.version, v), v) for v in self.versions(name)]
        found = [(priority, v) for priority, v in found if priority >= 0]
        if not found:
            return None
        if installed is not None:
            # Downwards only from 1000 on.
            found = [(p, v) for p, v in found if p >= 1000 or compare(v.version, installed.version) >= 0]
            if not found:
                return None
        best = max(priority for priority, _ in found)
        return next(v for priority, v in found if priority == best)

    def version_for(self, name: str, wanted: str) -> Version | None:
        """A version by its number, or by a pattern such as `580.159.03-*`."""
        return next((v for v in self.versions(name) if fnmatch.fnmatchcase(v.version, wanted)), None)

    def accepts(self, version: Version, relation: Relation) -> bool:
        """Whether a version meets a relation, by its name or what it provides."""
        if version.name == relation.name:
            return relation.accepts(version.version)
        return relation.name in version.provides and relation.operator is None


def record_for_kernel(template: str, body: dict[str, Any], kernel: str) -> tuple[str, dict[str, Any]]:
    """A kernel's package by its template in packages.yaml: name and record."""
    version = re.split(r"-(?:generic|amd64|pve)", kernel)[0]
    values = {"version": version, "architecture": "amd64"} | _filled(body, kernel)
    return template.replace("{k}", kernel), values


def _filled(value: Any, kernel: str) -> Any:
    if isinstance(value, str):
        return value.replace("{k}", kernel)
    if isinstance(value, dict):
        return {name: _filled(item, kernel) for name, item in value.items()}
    return value


def version_of_file(host: HostState, path: str) -> Version:
    """The package in a .deb.

    Raises:
        Failure: there is no such file, or it isn't a whole package.
    """
    place = host.rooted(path) if path.startswith("/") else Path.cwd() / path
    if not place.is_file():
        raise Failure(f"E: Unsupported file {path} given on commandline", 100)
    found = network.package_in(place.read_bytes())
    if found is None:
        raise Failure(
            f"dpkg-deb: error: '{path}' is not a Debian format archive\n"
            f"dpkg: error processing archive {path} (--install):\n dpkg-deb --control subprocess returned error exit status 2\n"
            f"Errors were encountered while processing:\n {path}",
            1,
        )
    name, version, group = found
    record = next(r for r in network.data(host)["groups"][group]["packages"][name] if r["version"] == version)
    return Version(name, version, group, record, Source(path, "now"))


# -- what an installation changes ------------------------------------------------------------------------------
class Unmet(Failure):
    """Dependencies that can't be met, in apt's words."""

    def __init__(self, lines: list[str]) -> None:
        text = (
            "Some packages could not be installed. This may mean that you have\nrequested an impossible situation or if "
            "you are using the unstable\ndistribution that some required packages have not yet been created\nor been moved "
            "out of Incoming.\nThe following information may help to resolve the situation:\n\nThe following packages have "
            "unmet dependencies:\n" + "".join(f" {line}\n" for line in lines)
        )
        end = "E: Unable to correct problems, you have held broken packages."
        super().__init__(text + end, 100)


class Change:
    """What has to be done to have some packages: `install` by name, `remove` what is in the way.

    Args:
        recommends: whether recommended packages are wanted as well.
    """

    def __init__(self, cache: Cache, *, recommends: bool = True) -> None:
        self._cache = cache
        self._recommends = recommends
        self.install: dict[str, Version] = {}
        self.remove: dict[str, Package] = {}
        #: What was asked for, by name: of these that version is the candidate.
        self.asked: dict[str, Version] = {}

    def want(self, versions: list[Version]) -> None:
        """Have these versions, and what they depend on.

        As with apt's resolver, a dependency is met by a package's candidate alone: `x=1` doesn't pull down what x needs
        in just that version, unless that is asked for as well, or pinned.

        Raises:
            Unmet: that can't be had together.
        """
        self.asked |= {version.name: version for version in versions}
        # All of them are in before the first one's dependencies are looked at, which they may meet.
        entered = [version for version in versions if self._enter(version)]
        for version in entered:
            self._follow(version)
        self._settle()

    def _candidate(self, name: str) -> Version | None:
        return self.asked.get(name) or self._cache.candidate(name)

    def drop(self, package: Package) -> None:
        """Be without a package, and without those that depend on it."""
        if package.name in self.remove:
            return
        self.remove[package.name] = package
        self.install.pop(package.name, None)
        for other in self._cache.database.packages.values():
            if other.present and other.name not in self.remove and other.name not in self.install:
                for clause in relations(other.fields.get("Depends", "")):
                    if any(r.name in package.provides() for r in clause) and not self._met(clause):
                        self.drop(other)

    def _put(self, version: Version) -> None:
        if self._enter(version):
            self._follow(version)

    def _enter(self, version: Version) -> bool:
        """Have a version installed, whatever it needs; False when it is, or will be.

        Raises:
            Unmet: another version will be.
        """
        known = self.install.get(version.name)
        if known is not None:
            if known.version != version.version:
                raise Unmet([f"{version.name} : Conflicts: {version.name} ({known.version})"])
            return False
        self.remove.pop(version.name, None)
        installed = self._cache.database.get(version.name)
        if installed is not None and installed.version == version.version and installed.state == "installed":
            return False
        self.install[version.name] = version
        self._clear_way(version)
        return True

    def _follow(self, version: Version) -> None:
        """Have what a version depends on."""
        for clause in relations(version.record.get("depends", "")):
            self._need(clause, version.name)
        if self._recommends:
            for clause in relations(version.record.get("recommends", "")):
                self._wish(clause)

    def _clear_way(self, version: Version) -> None:
        """Remove what a package conflicts with, or what conflicts with it."""
        mine = relations(version.record.get("conflicts", ""))
        for package in list(self._cache.database.packages.values()):
            if not package.present or package.name == version.name or package.name in self.install:
                continue
            theirs = relations(package.fields.get("Conflicts", ""))
            against = any(r.name in package.provides() for clause in mine for r in clause)
            if against or any(r.name in version.provides for clause in theirs for r in clause):
                self.drop(package)
        for other in self.install.values():
            if other.name != version.name and any(r.name in other.provides for clause in mine for r in clause):
                raise Unmet([f"{version.name} : Conflicts: {other.name} but {other.version} is to be installed"])

    def _met(self, clause: list[Relation]) -> bool:
        """Whether a dependency is met by what is there and stays, or is to be installed."""
        for relation in clause:
            for version in self.install.values():
                if self._cache.accepts(version, relation):
                    return True
            for package in self._cache.database.packages.values():
                if not package.present or package.name in self.remove or package.name in self.install:
                    continue
                exact = package.name == relation.name and relation.accepts(package.version)
                if exact or (relation.operator is None and relation.name in package.provides()):
                    return True
        return False

    def _need(self, clause: list[Relation], whose: str) -> None:
        if self._met(clause):
            return
        # What is there already comes first, in a newer version.
        for relation in sorted(clause, key=lambda one: self._cache.database.get(one.name) is None):
            for version in self._for(relation):
                saved = dict(self.install), dict(self.remove)
                try:
                    self._put(version)
                except Unmet:
                    self.install, self.remove = saved
                    continue
                return
        raise Unmet([f"{whose} : Depends: {' | '.join(map(str, clause))} {self._why_not(clause[0])}"])

    def _for(self, relation: Relation) -> Iterable[Version]:
        """Candidates that meet a relation: of that name first, then what provides it."""
        candidate = self._candidate(relation.name)
        if candidate is not None and relation.accepts(candidate.version):
            yield candidate
        if relation.operator is None:
            for name in self._cache.providers(relation.name):
                provider = self._candidate(name)
                if provider is not None and relation.name in provider.provides:
                    yield provider

    def _why_not(self, relation: Relation) -> str:
        candidate = self._candidate(relation.name)
        installed = self._cache.database.get(relation.name)
        if candidate is not None:
            return (
                f"but {candidate.version} is to be installed"
                if relation.operator
                else "but it is not going to be installed"
            )
        if installed is not None:
            return f"but {installed.version} is to be installed"
        return "but it is not installable"

    def _wish(self, clause: list[Relation]) -> None:
        if self._met(clause):
            return
        for relation in clause:
            candidate = self._candidate(relation.name)
            if candidate is None:
                continue
            saved = dict(self.install), dict(self.remove)
            try:
                self._put(candidate)
            except Unmet:
                self.install, self.remove = saved
                continue
            return

    def _settle(self) -> None:
        """Follow upgrades: what is installed and depends on exactly the old version goes along, or goes.

        Raises:
            Unmet: it can do neither.
        """
        for _ in range(len(self._cache.database.packages) + 1):
            broken = next(self._broken(), None)
            if broken is None:
                return
            package, clause = broken
            better = self._candidate(package.name)
            if better is not None and better.version != package.version and better.name not in self.install:
                self._put(better)
            elif package.hold:
                raise Unmet([f"{package.name} : Depends: {clause[0]} but it is not going to be installed"])
            else:
                self.drop(package)

    def _broken(self) -> Iterator[tuple[Package, list[Relation]]]:
        names = {*self.install, *self.remove}
        for package in self._cache.database.packages.values():
            if not package.present or package.name in names:
                continue
            for clause in relations(package.fields.get("Depends", "")):
                touched = any(relation.name in names for relation in clause)
                if touched and not self._met(clause):
                    yield package, clause


def unneeded(database: Database) -> list[Package]:
    """What was installed for others alone, and nobody needs any more: what autoremove removes."""
    needed: set[str] = set()
    queue = [p for p in database.packages.values() if p.present and p.name not in database.automatic]
    while queue:
        package = queue.pop()
        if package.name in needed:
            continue
        needed.add(package.name)
        for field_name in ("Depends", "Recommends"):
            for clause in relations(package.fields.get(field_name, "")):
                for relation in clause:
                    queue += [p for p in database.packages.values() if p.present and relation.name in p.provides()]
    return [p for _, p in sorted(database.packages.items()) if p.present and p.name not in needed]
