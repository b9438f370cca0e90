"""apt and dpkg for a layer: what they would do, what they do, and what the layer has added.

/var/lib/homelab/packages/LAYER has a line for each package that the layer added, changed or removed: name, version now,
version before, tabs between; `-` for a package that isn't there. It is written before apt is called, so that a run
which is killed leaves nothing unknown behind, and brought to what really is there at the end. What goes again is what
apt itself calls unneeded once the layer's packages aren't wanted by hand any more, as far as it came with the layer.

/var/lib/homelab/steps/STEP, a layer without `nvidia-`, has the name under which the settings have the system: a system
that was reinstalled, or went back to a snapshot, tells of no step that was carried out.

`Apt.aside` looks at sources, lists, pins and a log of its own, in a folder below /run: what is fetched, asked and
simulated there changes nothing of the system's. One of another architecture than the system's own is called as apt
calls it, NAME:ARCHITECTURE.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from remote_scripts.nvidia.software import Software
from remote_scripts.nvidia.symptoms import recognise
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.log import STEPS
from remote_scripts.tools.run import NOT_FOUND, TIMED_OUT, Done
from remote_scripts.tools.system import System

#: A file for each layer.
RECORDS = f"{HOME}/packages"
_STEPS = f"{HOME}/steps"
_INTERRUPTED = "/var/lib/dpkg/updates"
_HELPER = "/usr/lib/apt/apt-helper"
_ASIDE = "/run/homelab/apt-"
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "APT_LISTCHANGES_FRONTEND": "none"}
# An engine lacks its network, or its build, without what it recommends; else it is taken where that is asked for.
_INSTALL = (
    *("install", "--allow-downgrades", "--no-install-recommends"),
    *("-o", "APT::Install-Recommends-Sections::=admin", "-o", "APT::Install-Recommends-Sections::=universe/admin"),
)
# What is suggested nothing had come for.
_UNNEEDED = ("autoremove", "-o", "APT::Protect-Kernels=false", "-o", "APT::AutoRemove::SuggestsImportant=false")
_ASK_SECONDS = 600.0
_ANSWER_BYTES = 1 << 24
# Of the system's, with the option that names each: what is in them is seen aside, too.
_FOLDERS = {
    "lists": ("State::lists", "/var/lib/apt/lists"),
    "sources": ("Etc::sourceparts", "/etc/apt/sources.list.d"),
    "preferences": ("Etc::preferencesparts", "/etc/apt/preferences.d"),
}
_MAIN = "/etc/apt/apt.conf"
# An owner's hooks are for changes of the system's own lists; and by their names kernels' headers are never unneeded.
# (-o doesn't clear a list.)
_CLEARED = "".join(
    f"#clear APT::{name};\n"
    for name in (
        *(f"Update::{name}" for name in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")),
        *("NeverAutoRemove", "VersionedKernelPackages", "Install::Pre-Invoke", "Install::Post-Invoke-Success"),
    )
)
_CLEARED += "#clear AptCli::Hooks;\n"
# /run is in memory.
_SMALL = {"Dir::Cache::srcpkgcache": "", "Acquire::GzipIndexes": "true", "Acquire::Languages": "none"}
# An owner's images and volumes go with a purge of them.
_WITH_DATA = {"docker.io", "podman", "containerd"}
# That a command has waited for a lock is no failure.
_LOCKED = re.compile(
    r"^(E|Error|dpkg): .*(Could not get lock|Unable to (acquire the dpkg frontend lock|lock directory)"
    r"|lock was locked by)",
    re.MULTILINE,
)
# As CUDA's packages end in it: 12-8.
_RELEASE = re.compile(r"\d+-\d+$")
# What apt complains of, with the lines that continue it.
_COMPLAINT = re.compile(r"^(?:E|W|Err|Error|Warning)[: ].*(?:\n[ \t].*)*", re.MULTILINE)
# What apt says of a list that it has taken all the same: of its key's age, or where that lies.
_REMARK = re.compile(r"^(W|Warning): \w+://.*\n?", re.MULTILINE)
# Proxmox VE's own repositories.
_PROXMOX = re.compile(r"//\w+\.proxmox\.com/")
_BUILD_LOGS = re.compile(r"/var/lib/dkms/[^ \n]+/make\.log|/var/log/nvidia-installer\.log")
_NOTHING = re.compile(r"(?!)")


@dataclass
class Installed:
    """`present`: name -> version of what is there, configured or not; `whole`: of what is wholly installed; `left`:
    removed, with its configuration left.
    """

    present: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Record:
    """A package: its version now and before; `-` where it isn't there."""

    now: str
    before: str


@dataclass(frozen=True)
class Change:
    """A package that apt would change. `old`, `new`: versions; `-`: it isn't there."""

    name: str
    old: str
    new: str


@dataclass(frozen=True)
class Plan:
    """What apt would do. `why`: its own words where it can't."""

    changes: tuple[Change, ...] = ()
    why: str = ""

    @property
    def coming(self) -> dict[str, str]:
        """Packages that would come or change, and the versions by then."""
        return {change.name: change.new for change in self.changes if change.new != "-"}

    @property
    def going(self) -> list[str]:
        """Packages that would go."""
        return [change.name for change in self.changes if change.new == "-"]


@dataclass(frozen=True)
class Reverted:
    """The answer of every such layer's `revert`. `kept`: packages that others need by now."""

    kept: tuple[str, ...]
    changed: bool


def installed(system: System) -> Installed:
    """All packages.

    :raises Failure: dpkg doesn't say.
    """
    form = "-f=${Package}\\t${db:Status-Status}\\t${Version}\\t${Architecture}\\n"
    done = system.run.ask("dpkg-query", "-W", form, seconds=_ASK_SECONDS, limit=_ANSWER_BYTES)
    if done.status != NOT_FOUND:
        need_answer(done, "which packages are installed", "dpkg-query")
    packages = Installed()
    lines = [(*line.split("\t"), "", "", "")[:4] for line in done.text.split("\n")]
    own = next((architecture for name, *_, architecture in lines if name == "dpkg"), "")
    for bare, state, version, architecture in lines:
        name = f"{bare}:{architecture}" if own and architecture not in (own, "all", "") else bare
        if state == "config-files":
            packages.left.add(name)
        elif state and state != "not-installed":
            packages.present[name] = version
            if state == "installed":
                packages.whole[name] = version
    return packages


def need_answer(done: Done, wanted: str, program: str) -> None:
    """:raises Failure: a program that says what there is has failed."""
    if done.status != 0:
        raise Failure(
            wanted,
            done.failure(program),
            "what is there decides what is installed and what is kept; nothing more was changed",
            f"see what {program} says there, mend it, and run the same again",
        )


def recorded(system: System, layer: str) -> dict[str, Record]:
    """What a layer has recorded, by the packages' names.

    :raises OSError: it can't be read.
    """
    text = system.files.need_text(f"{RECORDS}/{layer}", _ANSWER_BYTES)
    lines = (line.split("\t") for line in text.split("\n") if line)
    # A version may be empty; a line that was cut short is none.
    return {words[0]: Record(*words[1:]) for words in lines if len(words) == 3}


class Apt:
    """apt and dpkg for one layer, and the layer's record.

    :param layer: the record's name.
    :param doing: what is done, for the lines that say that it goes on.
    """

    def __init__(self, system: System, software: Software, layer: str, doing: str = "packages") -> None:
        self.system = system
        self.software = software
        self.layer = layer
        self._doing = doing
        self._installed: Installed | None = None
        self._step = f"{_STEPS}/{layer.removeprefix('nvidia-')}"
        # What apt-get update complained of, where it did.
        self._complaints = ""
        #: Of an apt aside: its folder, options of each of its programs, and their environment.
        self.folder = ""
        self._options: tuple[str, ...] = ()
        self._environment: Mapping[str, str] | None = None

    # The step.

    def note_step(self) -> None:
        """Notes that it is carried out."""
        self.system.files.note(self._step, f"{self.software.context.name}\n".encode())

    def is_anothers(self) -> bool:
        """Whether the step was last carried out under another name of the settings: who gives a system a new name there
        gets the step under the new one first, and its undoing under the old one then. By that time what is there is the
        new one's.

        :raises OSError: its note can't be read.
        """
        name = self.software.context.name
        by = self.system.files.need_text(self._step).strip("\n")
        if not by or by == name:
            return False
        self.system.log.say(f"note: {by} has it by now: nothing is taken back under the name {name}")
        return True

    def reverted(self, kept: Sequence[str] = ()) -> Reverted:
        """The step was undone. What had another version before, or was removed, doesn't come back by itself.

        :param kept: packages that others need by now.
        """
        for name, record in self.records().items():
            if record.before != "-":
                now = "gone" if record.now == "-" else record.now
                self.system.log.say(f"note: {name} was {record.before} before this program came, and is {now}")
        self._write({})
        self.system.files.remove(self._step)
        return Reverted(tuple(kept), self.system.files.changed)

    # Asking.

    def _ask(self, program: str, *words: str) -> Done:
        return self.system.run.ask(
            *(program, *self._options, *words),
            seconds=_ASK_SECONDS,
            limit=_ANSWER_BYTES,
            environment=self._environment,
        )

    def simulate(self, *words: str) -> Plan:
        """What `apt-get WORDS` would change."""
        done = self._ask("apt-get", "-s", "-y", "-q", *words)
        if done.status:
            said = done.all_text.rpartition("Reading state information...")[2].removeprefix(" Done").strip()
            return Plan(why=said or done.failure("apt-get"))
        return Plan(tuple(_announced(done.text)))

    def simulate_install(self, words: Iterable[str], *, recommends: bool = False) -> Plan:
        """What `install` would change; arguments as of that."""
        return self.simulate(*_INSTALL, *(("--install-recommends",) if recommends else ()), *words)

    def bytes_of(self, plan: Plan) -> int:
        """What its new packages take on the disk."""
        words = [f"{change.name}={change.new}" for change in plan.changes if change.old == "-"]
        text = self._ask("apt-cache", "show", *words).text if words else ""
        return sum(map(int, re.findall(r"^Installed-Size: (\d+)", text, re.MULTILINE))) * 1024

    def offered(self, *names: str) -> dict[str, list[str]]:
        """The versions of each package that the repositories have, the newest first.

        :raises Failure: apt doesn't say.
        """
        versions: dict[str, list[str]] = {name: [] for name in names}
        if not names or not self.system.run.has("apt-cache"):
            return versions
        done = self._ask("apt-cache", "madison", *names)
        if not re.search(rb"No packages found|Unable to locate package", done.error):
            need_answer(done, "which versions of packages the repositories have", "apt-cache")
        for line in done.text.split("\n"):
            name, version, origin = (*(part.strip() for part in line.split("|", 2)), "", "")[:3]
            if name and origin.endswith("Packages") and version not in versions.setdefault(name, []):
                versions[name].append(version)
        return versions

    def lacking(self, words: Sequence[str]) -> list[str]:
        """What the repositories don't offer, and what of other releases they do, a line each.

        :param words: NAME or NAME=PATTERN.
        :raises Failure: apt doesn't say.
        """
        found, lines = self.offered(*(word.partition("=")[0] for word in words)), []
        for word in words:
            name, _, pattern = word.partition("=")
            if not fnmatch.filter(found[name], pattern or "*"):
                stem = _RELEASE.sub("", name)
                known = self._ask("apt-cache", "pkgnames", stem).text.split() if stem != name else []
                others = sorted(one for one in known if _RELEASE.sub("", one) == stem)
                lines.append(f"{name} isn't offered" + (f"; there is {', '.join(others)}" if others else ""))
        return lines

    def installed(self) -> Installed:
        """Of all packages; asked once, until something may have changed it.

        :raises Failure: dpkg doesn't say.
        """
        if self._installed is None:
            self._installed = installed(self.system)
        return self._installed

    def is_whole(self, package: str) -> bool:
        """Whether NAME or NAME=PATTERN is installed, at such a version."""
        name, has_pattern, pattern = package.partition("=")
        version = self.installed().whole.get(name, "")
        return bool(version) and fnmatch.fnmatchcase(version, pattern if has_pattern else "*")

    def marked(self, mark: Literal["auto", "manual"]) -> set[str]:
        """The packages that were installed for others, or by hand.

        :raises Failure: apt doesn't say.
        """
        done = self._ask("apt-mark", f"show{mark}")
        need_answer(done, "which packages were installed by hand", "apt-mark")
        return {*done.text.split()}

    def file_of(self, url: str) -> str:
        """The file in which a repository stands, as apt reads its configuration; empty where it is in none, or where
        apt can't read that, which it says when the lists are fetched.
        """
        asked = ("indextargets", "--no-release-info", "--format", "$(REPO_URI) $(SOURCESENTRY)", "Created-By: Packages")
        for line in self._ask("apt-get", *asked).text.split("\n"):
            repository, _, entry = line.partition(" ")
            if repository.rstrip("/") == url:
                return entry.rpartition(":")[0].removeprefix(self.system.files.name("").rstrip("/"))
        return ""

    # Aside.

    @contextlib.contextmanager
    def aside(self, *, alone: bool = False) -> Iterator[Apt]:
        """An apt that is asked and simulates, until its end; further sources and pins are added to it. Lists that the
        system has aren't fetched again.

        :param alone: it has nothing of the system's.
        """
        files, given = self.system.files, os.environ.get("APT_CONFIG")
        for name in files.names("/run/homelab"):  # of runs that were killed
            if name.startswith("apt-") and not os.path.exists(f"/proc/{name[4:]}"):
                files.remove_tree(f"/run/homelab/{name}")
        other = Apt(self.system, self.software, self.layer, self._doing)
        folder = other.folder = f"{_ASIDE}{os.getpid()}"
        here = files.name(folder)
        files.remove_tree(folder)
        try:
            for name in (*_FOLDERS, "only", "log", "cache/archives/partial", "lists/partial"):
                files.need_folder(f"{folder}/{name}")
            for name, (_, theirs) in () if alone else _FOLDERS.items():
                links = ("-type", "f,l", "!", "-name", "lock", "-exec", "ln", "-s", "-t", f"{here}/{name}", "{}", "+")
                if files.is_folder(theirs):
                    done = self.system.run.ask("find", files.name(theirs), "-maxdepth", "1", *links)
                    need_answer(done, f"what is in {theirs}", "find")
            main = _include(files.name(_MAIN) if files.is_file(_MAIN) else None) + _CLEARED  # apt reads it last
            texts = {"apt.conf": f'{_include(given)}Dir::Etc::main "{here}/main";\n', "main": main}
            for name, text in texts.items():
                files.write(f"{folder}/{name}", text.encode(), 0o644)
            places = {option: name for name, (option, _) in _FOLDERS.items()} | {"Log": "log", "Cache": "cache"}
            places |= {"Etc::sourcelist": "none"} if alone else {}
            other._options = _options({f"Dir::{option}": f"{here}/{name}" for option, name in places.items()} | _SMALL)
            other._environment = {"APT_CONFIG": f"{here}/apt.conf"}
            yield other
        finally:
            files.remove_tree(folder)

    def add_source(self, name: str, text: str, *, is_new: bool) -> None:
        """A source for an apt aside.

        :param is_new: whether the system hasn't got it: its lists are fetched all the same.
        """
        for folder in ("only", *(("sources",) if is_new else ())):
            self.system.files.write(f"{self.folder}/{folder}/{name}", text.encode(), 0o644)

    def pin(self, name: str, text: str) -> None:
        """Pins for an apt aside, in the place of the system's of that name."""
        self.system.files.write(f"{self.folder}/preferences/{name}", text.encode(), 0o644)

    def refresh(self, *, unverified: bool) -> None:
        """Fetches the lists of the sources that were added aside; on a system that has no lists yet, all of them.

        :param unverified: a server isn't asked who it is; the keys' fingerprints say whether its lists are true.
        :raises Failure: one can't be had.
        """
        here = self.system.files.name(self.folder)
        only = {"Dir::Etc::sourceparts": f"{here}/only", "Dir::Etc::sourcelist": "/dev/null"}
        settings = only | {"APT::Get::List-Cleanup": "0", "APT::Update::Error-Mode": "any"}
        if not any("_Packages" in name for name in self.system.files.names(_FOLDERS["lists"][1])):
            self._ask("apt-get", "-q", "update", *_unverified(unverified))  # what others lack isn't ours
        done = self._ask("apt-get", "-q", "update", *_options(settings), *_unverified(unverified))
        if done.status != 0:
            wanted, why = "the lists of packages, by apt-get update", "what they have decides what can be installed"
            self.explain(done.all_text, wanted, why)
        self._ask("apt-cache", "gencaches")  # each question takes half the time

    def fetch(self, url: str, path: str, *, unverified: bool = False) -> None:
        """A file by apt's own means; arguments as of `refresh`.

        :raises Failure: it can't be had.
        """
        files = self.system.files
        done = self._ask(_HELPER, *_unverified(unverified), "download-file", url, files.name(path))
        if done.status != 0 or not files.is_file(path):
            self.explain(done.all_text, url, "it is the key of a repository that is needed")

    # Doing.

    def do(self, *arguments: str, seconds: float = 0, doing: str = "") -> Done:
        """A program that takes long, and may change what is installed.

        :param seconds: by default as long as an installation may take.
        """
        self._installed = None
        return self.system.run.do(
            *arguments,
            seconds=seconds or self.software.install_seconds,
            doing=doing or self._doing,
            environment=_ENVIRONMENT,
        )

    def get(self, *arguments: str, seconds: float = 0, folder: str = "") -> Done:
        """apt-get, which asks nothing and keeps all configuration.

        :param folder: where it works; by default anywhere.
        """
        options = [f"DPkg::Lock::Timeout={self.software.lock_seconds}", "Acquire::Retries=3", "Dpkg::Use-Pty=0"]
        options += ["Dpkg::Options::=--force-confdef", "Dpkg::Options::=--force-confold"]
        command = [*(("env", "-C", self.system.files.name(folder)) if folder else ()), "apt-get", "-y", "-q"]
        command += [word for option in options for word in ("-o", option)]
        return self._retry_while_locked(*command, *arguments, seconds=seconds)

    def _retry_while_locked(self, *arguments: str, seconds: float = 0) -> Done:
        """Waits for others' locks: apt-get itself for dpkg's, this for those that it doesn't wait for."""
        until = time.monotonic() + self.software.lock_seconds
        is_said = False
        while True:
            done = self.do(*arguments, seconds=seconds)
            lock = _LOCKED.search(done.said_text)
            if done.status == 0 or not lock or time.monotonic() >= until:
                return done
            line = done.said_text[lock.start() :].partition("\n")[0]
            if not is_said:
                self.system.log.say(f"waiting up to {self.software.lock_seconds} s for: {line}")
            is_said = True
            self.system.work.go_on(f"waiting for another one's lock: {line}")
            time.sleep(1)

    def update(self, *urls: str) -> None:
        """The lists of all repositories. That another repository is out of order (pve-enterprise without a
        subscription) isn't ours to mend.

        :param urls: beginnings of addresses.
        :raises Failure: one of these can't be had, or none can.
        """
        self.system.log.say("fetching the lists of packages")
        done = self.get("update", "-o", "APT::Update::Error-Mode=any")
        self._complaints = ""
        if done.status == 0:
            return
        text = _REMARK.sub("", done.said_text)
        complaints = _COMPLAINT.findall(text)
        self._complaints = "\n".join(line for line in complaints if not _PROXMOX.search(line))
        if (
            done.status >= TIMED_OUT
            or _LOCKED.search(text)
            or re.search("sources could not be read|No space left", text)
        ):
            self.explain(done, "the lists of packages, by apt-get update", "packages are installed from them")
        for url in urls:
            if mine := "\n".join(complaint for complaint in complaints if url in complaint.partition("\n")[0]):
                self.explain(mine, f"the list of packages of {url}", "what is wanted comes from there")
        self.system.log.say("not all lists could be fetched; those that are needed here are there")

    def repair(self) -> None:
        """What an interrupted dpkg has left, of whomever's, before anything is added. What can't be repaired the next
        step may replace.
        """
        on_system = self.installed()
        interrupted = any(name.isdigit() for name in self.system.files.names(_INTERRUPTED))
        if on_system.present == on_system.whole and not interrupted:
            return
        self.system.log.say("packages are half installed: repairing that first")
        self.system.files.changed = True
        configure = ("dpkg", "--configure", "-a", "--force-confdef", "--force-confold")
        if self._retry_while_locked(*configure).status and self.get("install", "-f", "--no-remove").status:
            self.system.log.say("note: apt-get install -f didn't repair every package")

    def install(
        self,
        words: Iterable[str],
        *,
        needed: Sequence[str] = (),
        recommends: bool = False,
        may_remove: re.Pattern[str] = _NOTHING,
    ) -> None:
        """Packages for the layer. What apt-get announces is added to the record, done, and compared with what is there
        then: apt-get also fails where another package can't be configured, which is in the way of none. What is there
        at its version stays untouched, and keeps its mark; a version may go down.

        :param words: NAME, NAME=PATTERN or a file; NAME-, of one that goes.
        :param needed: NAME=VERSION of those in the files.
        :param recommends: with what they recommend.
        :param may_remove: names that may go, besides what this program added.
        :raises Failure: they can't be had.
        """
        words = [*words]
        if not all(map(self.is_whole, words)):
            self.repair()
        words = [word for word in words if not self.is_whole(word)]
        if not words:
            self.settle()
            return
        shown = " ".join(word.rpartition("/")[2] for word in words)
        what = f"to install {shown}"
        plan = self.simulate_install(words, recommends=recommends)
        if plan.why:
            self.explain_install(plan.why, what)
        if against := " ".join(self.of_others(plan.going, may_remove)):
            raise Failure(
                what,
                f"{against} would be removed for it",
                "they aren't this program's to remove",
                f"remove what is in the way yourself (`apt-get remove {against}`), then run `pulumi up` again",
            )
        names = {word.partition("=")[0] for word in words}
        automatic = sorted(names & self.installed().present.keys() & self.marked("auto") - {*self.records()})
        self._write({**{change.name: Record(change.new, change.old) for change in plan.changes}, **self.records()})
        self.system.log.say(f"installing {shown}")
        self.system.files.changed = True
        # It fetches gigabytes, too: a slow line mustn't end it while it unpacks.
        seconds = self.software.download_seconds + self.software.install_seconds
        more = ("--install-recommends",) if recommends else ()
        done = self.get(*_INSTALL, *more, *words, seconds=seconds)
        self.mark("auto", automatic)
        self.settle()
        there = self.installed()
        is_done = [there.whole.get(name) == version for name, version in plan.coming.items()]
        is_done += [name not in there.present for name in plan.going]
        is_done += map(self.is_whole, needed or [word for word in words if not word.endswith("-")])
        if not all(is_done):
            self.explain_install(done, what)

    def fetch_packages(self, words: Sequence[str], *, recommends: bool = False) -> None:
        """Into apt's cache, before what they replace goes; arguments as of `install`.

        :raises Failure: they can't be had.
        """
        more = ("--install-recommends",) if recommends else ()
        done = self.get(*_INSTALL, *more, "--download-only", *words, seconds=self.software.download_seconds)
        if done.status != 0:
            self.explain_install(done, f"to fetch {' '.join(words)}")

    def of_others(self, names: Iterable[str], may_remove: re.Pattern[str] = _NOTHING) -> list[str]:
        """Of packages that would go those that no layer of homelab's has added, nor may be removed."""
        own = {
            name
            for layer in self.system.files.names(RECORDS)
            if not layer.startswith(".")
            for name, record in recorded(self.system, layer).items()
            if record.before == "-"
        }
        return sorted(name for name in names if name not in own and not may_remove.search(name))

    def mark(self, mark: Literal["auto", "manual"], names: Sequence[str]) -> bool:
        """Packages count as installed for others alone, or by hand; returns whether that could be done."""
        if names and self._retry_while_locked("apt-mark", mark, *names).status != 0:
            self.system.log.say(f"apt-mark {mark} {' '.join(names)} failed")
            return False
        return True

    def tidy(self, wanted: Collection[str] = (), *, recommends: bool = False) -> list[str]:
        """What came with the layer, isn't wanted and isn't needed any more is purged.

        :param wanted: names.
        :param recommends: what is recommended is needed.
        :returns: what stays all the same, as others need it.
        :raises Failure: apt can't do it.
        """
        self.settle()
        came = {name for name, record in self.records().items() if record.before == "-"}
        there = self.installed()
        if not came:
            return []
        ours, automatic = came & there.present.keys(), self.marked("auto")
        is_marked = self.mark("auto", sorted(ours - automatic - {*wanted}))
        is_marked &= self.mark("manual", sorted(ours & automatic & {*wanted}))  # by what was cut short they weren't
        important = f"APT::AutoRemove::RecommendsImportant={'true' if recommends else 'false'}"
        with self.aside() as other:  # where nothing is protected by its name
            plan = other.simulate(*_UNNEEDED, "-o", important)
        if plan.why or not is_marked:
            self.explain(plan.why or "apt-mark failed", "to remove what isn't wanted", "this program installed it")
        gone = [name for name in plan.going if name in came]
        gone += sorted(came & there.left - {*wanted} - _WITH_DATA)
        if gone and not {*self.simulate("purge", *gone).going} <= came:  # others need it that nothing needs
            gone = [name for name in gone if {*self.simulate("purge", name).going} <= came]
        if gone:
            words = " ".join(gone)
            self.system.log.say(f"removing {words}")
            if with_data := [name for name in gone if name in _WITH_DATA]:
                self.get("remove", *with_data)
            done = self.get("purge", *(name for name in gone if name not in with_data))
            self.settle()
            if done.status != 0 and {*gone} & {*self.records()}:
                self.explain(done, f"to remove {words}", "this program installed them")
            self.system.files.changed = True
        return sorted(came & self.installed().present.keys() - {*wanted})

    # The record.

    def records(self) -> dict[str, Record]:
        """What the layer added, changed or removed.

        :raises OSError: the record can't be read.
        """
        return recorded(self.system, self.layer)

    def settle(self) -> None:
        """The record says what there is; what is as it was before the layer isn't in it."""
        there = self.installed()
        now = {name: Record(there.present.get(name) or "-", record.before) for name, record in self.records().items()}
        # What is left of one that was removed for another of homelab's is purged with the rest.
        self._write({name: record for name, record in now.items() if record.now != record.before or name in there.left})

    def of_layer(self) -> list[str]:
        """What the layer added or changed and is there."""
        return [name for name, record in sorted(self.records().items()) if record.now != "-"]

    def _write(self, records: Mapping[str, Record]) -> None:
        files, path = self.system.files, f"{RECORDS}/{self.layer}"
        if not records:
            files.remove(path)
            return
        lines = sorted(f"{name}\t{record.now}\t{record.before}\n" for name, record in records.items())
        files.note(path, "".join(lines).encode("utf-8", "surrogateescape"))

    # What failures mean.

    def explain(self, done: Done | str, wanted: str, why: str, next: str = "") -> NoReturn:
        """Ends with the message of the first known failure that a program's output has, else with its last lines.

        :raises Failure: always.
        """
        text = done if isinstance(done, str) else done.said_text
        log = self._build_log(text, 12)
        # A compiler's first error is far above its last line, where it works on several files at a time.
        symptom = recognise(text + self._build_log(text, 400), self.software.context)
        if symptom:
            raise symptom[1].but(found=symptom[1].found + log)
        if not isinstance(done, str) and done.status == TIMED_OUT:
            next = (
                "run `pulumi up` again: it continues from what is there; a slow line or system gets longer with "
                "nvidia.timeouts.install"
            )
        last = "\n".join(text.rstrip("\n").split("\n")[-8:])
        raise Failure(
            wanted,
            last + log,
            why,
            next or f"correct what the lines above say (/{STEPS} there has all of it), then run `pulumi up` again",
        )

    def explain_install(self, done: Done | str, what: str) -> NoReturn:
        """The same of an installation. What isn't known to apt may only be so as its lists couldn't be fetched. Proxmox
        VE's own repositories have nothing but what is Proxmox VE's.

        :raises Failure: always.
        """
        symptom = recognise(done if isinstance(done, str) else done.said_text, self.software.context)
        if self._complaints and symptom and symptom[0] == "package-not-found":
            self.explain(self._complaints, "the lists of packages, by apt-get update", "packages come from them")
        self.explain(done, what, "what follows needs it")

    def _build_log(self, text: str, lines: int) -> str:
        """The end of the compiler's output, or of the installer's own log, where the text names that."""
        for path in sorted(set(_BUILD_LOGS.findall(text))):
            if ends := end_of(self.system, path, lines):
                return f"\n{path} ends:\n{ends}"
        return ""


def end_of(system: System, path: str, lines: int) -> str:
    """The last lines of a log; empty where it can't be read."""
    done = system.run.ask("tail", "-n", str(lines), "--", system.files.name(path))
    return done.text if done.status == 0 else ""


def _announced(text: str) -> Iterator[Change]:
    gone = set()
    for words in (line.split(" ") for line in text.split("\n")):
        if words[0] == "Inst" and len(words) > 2:
            has_old = words[2].startswith("[")
            new = words[3] if has_old and len(words) > 3 else words[2]
            yield Change(words[1], words[2][1:-1] if has_old else "-", new[1:])
        elif words[0] in ("Remv", "Purg") and len(words) > 2 and words[1] not in gone:
            gone.add(words[1])
            yield Change(words[1], words[2].strip("[]"), "-")


def _include(path: str | None) -> str:
    return f'#include "{path}";\n' if path else ""


def _options(settings: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))


def _unverified(unverified: bool) -> tuple[str, ...]:
    return _options({"Acquire::https::Verify-Peer": "false"}) if unverified else ()
