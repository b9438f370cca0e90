"""apt as it is asked: what it would do, what it offers, what is marked.

`aside` looks at sources, lists, pins and a log of its own, in a folder below /run that everybody may read, as apt's
user _apt has to. What is fetched, asked and simulated there changes nothing of the system's. A package of another
architecture than the system's own is called as apt calls it, NAME:ARCHITECTURE.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NoReturn

from remote_scripts.apt.packages import ANSWER_BYTES, ASK_SECONDS, Installed, Plan, announced, installed, need_answer
from remote_scripts.both.software import Software
from remote_scripts.both.symptoms import recognise
from remote_scripts.tools.done import TIMED_OUT, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.log import STEPS
from remote_scripts.tools.system import System

#: Fetches a file.
HELPER = "/usr/lib/apt/apt-helper"
_ASIDE = "homelab-apt-"
#: An engine lacks its network, or its build, without what it recommends; else it is taken where that is asked for.
INSTALL = (
    *("install", "--allow-downgrades", "--no-install-recommends"),
    *("-o", "APT::Install-Recommends-Sections::=admin", "-o", "APT::Install-Recommends-Sections::=universe/admin"),
)
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
# As CUDA's packages end in it: 12-8.
_RELEASE = re.compile(r"\d+-\d+$")
_BUILD_LOGS = re.compile(r"/var/lib/dkms/[^ \n]+/make\.log|/var/log/nvidia-installer\.log")


class AskedApt:
    """apt and dpkg that answer, and change nothing.

    :param layer: the record's name.
    :param doing: what is done, for the lines that say that it goes on.
    """

    def __init__(self, system: System, software: Software, layer: str, doing: str = "packages") -> None:
        self.system = system
        self.software = software
        self.layer = layer
        self._doing = doing
        self._installed: Installed | None = None
        #: Of an apt aside: its folder, options of each of its programs, and their environment.
        self.folder = ""
        self._options: tuple[str, ...] = ()
        self._environment: Mapping[str, str] | None = None

    # Asking.

    def _ask(self, program: str, *words: str) -> Done:
        return self.system.run.ask(
            *(program, *self._options, *words),
            seconds=ASK_SECONDS,
            limit=ANSWER_BYTES,
            environment=self._environment,
        )

    def simulate(self, *words: str) -> Plan:
        """What `apt-get WORDS` would change."""
        done = self._ask("apt-get", "-s", "-y", "-q", *words)
        if done.status:
            said = done.all_text.rpartition("Reading state information...")[2].removeprefix(" Done").strip()
            return Plan(why=said or done.failure("apt-get"))
        return Plan(announced(done.text))

    def simulate_install(self, words: Iterable[str], *, recommends: bool = False) -> Plan:
        """What `install` would change; arguments as of that."""
        return self.simulate(*INSTALL, *(("--install-recommends",) if recommends else ()), *words)

    def bytes_of(self, plan: Plan) -> int:
        """What its new packages take on the disk."""
        words = [f"{name}={change.now}" for name, change in plan.changes.items() if change.before == "-"]
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

    def resolved(self, word: str) -> str:
        """NAME=VERSION, of what is there or else the newest that is offered, for a NAME=PATTERN: apt takes no pattern
        that begins with a star.
        """
        name, has_pattern, pattern = word.partition("=")
        if not has_pattern:
            return word
        versions = [self.installed().whole.get(name, ""), *self.offered(name)[name]]
        return f"{name}={next((version for version in versions if fnmatch.fnmatchcase(version, pattern)), pattern)}"

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
        """The file in which apt's configuration names a repository. Empty: none does, or apt can't read its
        configuration (it says so when it fetches the lists).
        """
        asked = ("indextargets", "--no-release-info", "--format", "$(REPO_URI) $(SOURCESENTRY)", "Created-By: Packages")
        for line in self._ask("apt-get", *asked).text.split("\n"):
            repository, _, entry = line.partition(" ")
            if repository.rstrip("/") == url:
                return entry.rpartition(":")[0].removeprefix(self.system.files.name("").rstrip("/"))
        return ""

    # Aside.

    @contextlib.contextmanager
    def aside(self, *, alone: bool = False) -> Iterator[AskedApt]:
        """An apt that is asked and simulates, until its end; further sources and pins are added to it. Lists that the
        system has aren't fetched again.

        :param alone: it has nothing of the system's.
        """
        files, given = self.system.files, os.environ.get("APT_CONFIG")
        for name in files.names("/run"):  # of runs that were killed
            if name.startswith(_ASIDE) and not os.path.exists(f"/proc/{name.removeprefix(_ASIDE)}"):
                files.remove_tree(f"/run/{name}")
        other = AskedApt(self.system, self.software, self.layer, self._doing)
        folder = other.folder = f"/run/{_ASIDE}{os.getpid()}"
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

    def refresh(self) -> None:
        """Fetches the lists of the sources that were added aside; on a system that has no lists yet, all of them.

        :raises Failure: one can't be had.
        """
        here = self.system.files.name(self.folder)
        only = {"Dir::Etc::sourceparts": f"{here}/only", "Dir::Etc::sourcelist": "/dev/null"}
        settings = only | {"APT::Get::List-Cleanup": "0", "APT::Update::Error-Mode": "any"}
        if not any("_Packages" in name for name in self.system.files.names(_FOLDERS["lists"][1])):
            self._ask("apt-get", "-q", "update")  # what others lack isn't ours
        done = self._ask("apt-get", "-q", "update", *_options(settings))
        if done.status != 0:
            wanted, why = "the lists of packages, by apt-get update", "what they have decides what can be installed"
            self.explain(done.all_text, wanted, why)
        self._ask("apt-cache", "gencaches")  # each question takes half the time

    def fetch(self, url: str, path: str) -> None:
        """A small file by apt's own means.

        :raises Failure: it can't be had.
        """
        files = self.system.files
        done = self._ask(HELPER, "download-file", url, files.name(path))
        if done.status != 0 or not files.is_file(path):
            self.explain(done.all_text, url, "it is the key of a repository that is needed")

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


def _include(path: str | None) -> str:
    return f'#include "{path}";\n' if path else ""


def _options(settings: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))
