"""Packages and downloads for a layer: what it adds is recorded, and taken away again.

/var/lib/homelab/packages/LAYER has a line for each package that the layer added, changed or removed: name, version now,
version before, mark before (auto or manual), tabs between; `-` for a package that isn't there. It is written before apt
is called, so that a run which is killed leaves nothing unknown behind, and brought to what really is there at the end.

/var/lib/homelab/steps/STEP, a layer without `nvidia-`, has the name under which the settings have the system: a system
that was reinstalled, or went back to a snapshot, tells of no step that was carried out.
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from remote_scripts.shared import installed
from remote_scripts.shared.apt import THE_SYSTEMS
from remote_scripts.shared.installed import RECORDS, Installed, Record
from remote_scripts.shared.software import Software
from remote_scripts.shared.symptoms import recognise
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.log import STEPS
from remote_scripts.tools.run import TIMED_OUT, Done
from remote_scripts.tools.system import System

#: What apt-get update complained of, where it did.
COMPLAINTS = "/run/homelab/update"
_STEPS = f"{HOME}/steps"
_INTERRUPTED = "/var/lib/dpkg/updates"
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "APT_LISTCHANGES_FRONTEND": "none"}
_INSTALL = ("install", "--allow-downgrades")
_INSTALL_ALONE = (*_INSTALL, "--no-install-recommends")
_ASK_SECONDS = 600.0
_ANSWER_BYTES = 1 << 24
# That a command has waited for a lock is no failure.
_LOCKED = re.compile(
    r"^(E|Error|dpkg): .*(Could not get lock|Unable to (acquire the dpkg frontend lock|lock directory)"
    r"|lock was locked by)",
    re.MULTILINE,
)
# What apt complains of, with the lines that continue it.
_COMPLAINT = re.compile(r"^(?:E|W|Err|Error|Warning)[: ].*(?:\n[ \t].*)*", re.MULTILINE)
# What apt says of a list that it has taken all the same: of its key's age, or where that lies.
_REMARK = re.compile(r"^(W|Warning): \w+://.*\n?", re.MULTILINE)
# Proxmox VE's own repositories.
_PROXMOX = re.compile(r"//\w+\.proxmox\.com/")
_BUILD_LOGS = re.compile(r"/var/lib/dkms/[^ \n]+/make\.log|/var/log/nvidia-installer\.log")
# curl's exit statuses where the server doesn't go on from there: an old part is longer than the file, or the file has
# changed.
_FROM_THE_BEGINNING = (22, 33, 36)


@dataclass(frozen=True)
class Reverted:
    """The answer of every such layer's `revert`. `kept`: packages that others need by now."""

    kept: tuple[str, ...]
    changed: bool


@dataclass(frozen=True)
class Change:
    """A package that apt would change. `old`, `new`: versions; `-`: it isn't there."""

    name: str
    old: str
    new: str


class Packages:
    """apt, dpkg and curl for one layer, and the layer's record.

    :param layer: the record's name.
    :param doing: what is done, for the lines that say that it goes on.
    :param may_remove: the names that an installation may remove, besides what this program added.
    :param never: the names that an installation may not touch.
    """

    def __init__(
        self,
        system: System,
        software: Software,
        layer: str,
        doing: str = "packages",
        may_remove: re.Pattern[str] | None = None,
        never: re.Pattern[str] | None = None,
    ) -> None:
        self.system = system
        self.software = software
        self.layer = layer
        self._doing = doing
        self._may_remove = may_remove
        self._never = never
        self._installed: Installed | None = None
        self._step = f"{_STEPS}/{layer.removeprefix('nvidia-')}"
        #: The apt that is asked and simulates; by default the system's.
        self.aside = THE_SYSTEMS
        #: What `remove` left, as others need it by now.
        self.kept: list[str] = []

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

    def reverted(self) -> Reverted:
        """The step was undone."""
        self.system.files.remove(self._step)
        return Reverted(tuple(self.kept), self.system.files.changed)

    # Programs.

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

    def apt(self, *arguments: str, seconds: float = 0, folder: str = "") -> Done:
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
            if not is_said:
                self.system.log.say(f"waiting up to {self.software.lock_seconds} s for: {_line_of(lock)}")
            is_said = True
            self.system.work.go_on(f"waiting for another one's lock: {_line_of(lock)}")
            time.sleep(1)

    def update(self, *urls: str) -> None:
        """The lists of all repositories. That another repository is out of order (pve-enterprise without a
        subscription) isn't ours to mend.

        :param urls: beginnings of addresses.
        :raises Failure: one of these can't be had, or none can.
        """
        files = self.system.files
        self.system.log.say("fetching the lists of packages")
        done = self.apt("update", "-o", "APT::Update::Error-Mode=any")
        files.remove(COMPLAINTS)
        if done.status == 0:
            return
        text = _REMARK.sub("", done.said_text)
        complaints = _COMPLAINT.findall(text)
        files.write(COMPLAINTS, "\n".join(complaints).encode("utf-8", "surrogateescape") or done.said, 0o600)
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

    def repair(self) -> bool:
        """What an interrupted dpkg has left, of whomever's, before anything is added. What can't be repaired the next
        step may replace.

        :returns: whether there was anything.
        """
        on_system = self.installed()
        interrupted = any(name.isdigit() for name in self.system.files.names(_INTERRUPTED))
        if on_system.present == on_system.whole and not interrupted:
            return False
        self.system.log.say("packages are half installed: repairing that first")
        self.system.files.changed = True
        is_done = (
            self._retry_while_locked("dpkg", "--configure", "-a", "--force-confdef", "--force-confold").status == 0
        )
        if not is_done and self.apt("install", "-f", "--no-remove").status != 0:
            self.system.log.say("note: apt-get install -f didn't repair every package")
        return True

    def simulated(self, *arguments: str) -> Done:
        """What apt-get would do."""
        return self._ask_apt("-s", "-q", *arguments)

    def _ask_apt(self, *arguments: str) -> Done:
        command, environment = ("apt-get", *self.aside.options, *arguments), self.aside.environment
        done = self.system.run.ask(*command, seconds=_ASK_SECONDS, limit=_ANSWER_BYTES, environment=environment)
        return Done(done.status, done.output, said=done.output + done.error)

    def fetch_aside(self) -> None:
        """The lists of the sources that the apt aside has besides the system's.

        :raises Failure: one can't be had.
        """
        done = self._ask_apt("-q", "update", *self.aside.fetching)
        if done.status != 0:
            self.explain(
                done, "the lists of packages, by apt-get update", "what they have decides what can be installed"
            )

    def offered(self, *names: str) -> dict[str, list[str]]:
        """The versions of each package that the repositories have, the newest first."""
        return installed.offered(self.system, *names, aside=self.aside)

    # What is installed.

    def installed(self) -> Installed:
        """Of all packages; asked once, until something may have changed it.

        :raises Failure: dpkg doesn't say.
        """
        if self._installed is None:
            self._installed = installed.installed(self.system)
        return self._installed

    def is_whole(self, package: str) -> bool:
        """Whether NAME or NAME=PATTERN is installed, at such a version."""
        name, has_pattern, pattern = package.partition("=")
        version = self.installed().whole.get(name, "")
        return bool(version) and fnmatch.fnmatchcase(version, pattern if has_pattern else "*")

    # Installing.

    def install(self, names: Iterable[str], *, recommends: bool = False) -> None:
        """Packages for the layer, with what they recommend or without. What is there at its version stays untouched,
        and no others' packages are removed (`may_remove`); a version may go down.

        :param names: NAME or NAME=PATTERN.
        :raises Failure: they can't be had.
        """
        names = tuple(names)
        if not all(map(self.is_whole, names)):
            self.repair()
        missing = [name for name in names if not self.is_whole(name)]
        if not missing:
            self.settle()
            return
        words = " ".join(missing)
        self.system.log.say(f"installing {words}")
        # It fetches gigabytes, too: a slow line mustn't end it while it unpacks.
        seconds = self.software.download_seconds + self.software.install_seconds
        arguments = (*(_INSTALL if recommends else _INSTALL_ALONE), *missing)
        self._carry_out(f"to install {words}", *arguments, needed=missing, seconds=seconds)

    def put_back(self, words: Sequence[str], needed: Sequence[str]) -> None:
        """The same for packages in files, and NAME- for those that make way.

        :param needed: NAME=VERSION of those in the files.
        :raises Failure: they can't be installed.
        """
        shown = " ".join(word.rpartition("/")[2] for word in words)
        self._carry_out(f"to put back {shown}", *_INSTALL_ALONE, *words, needed=needed)

    def _carry_out(self, what: str, *arguments: str, needed: Sequence[str] = (), seconds: float = 0) -> None:
        """What apt-get announces is added to the record, done, and compared with what is there then: apt-get also
        fails where another package can't be configured, which is in the way of none.

        :param what: for a message.
        :param needed: NAME or NAME=PATTERN: one that is there and only has to be configured apt-get doesn't announce.
        :raises Failure: apt-get can't do it, or a user's package would go.
        """
        plan = self.simulated(*arguments)
        if plan.status != 0:
            self.explain_install(plan, what)
        changes = announced(plan)
        self._need_allowed(changes, what)
        self._record(changes)
        self.system.files.changed = True
        done = self.apt(*arguments, seconds=seconds)
        self.settle()
        there = self.installed()
        is_done = (
            (there.present if change.new == "-" else there.whole).get(change.name, "-") == change.new
            for change in changes
        )
        if not (all(is_done) and all(map(self.is_whole, needed))):
            self.explain_install(done, what)

    def _need_allowed(self, changes: Sequence[Change], what: str) -> None:
        if touched := sorted(change.name for change in changes if self._never and self._never.search(change.name)):
            raise Failure(
                f"{self.software.context.name}: {what}, without a driver or a kernel",
                f"apt would also change: {' '.join(touched)}",
                "the driver is what nvidia.driver says; another one beside it, or in its place, doesn't fit the loaded "
                "module",
                f"packages of other repositories may be in the way: see `apt-cache policy {touched[0]}`",
            )
        own = self.own()
        gone = sorted(change.name for change in changes if change.new == "-")
        against = [
            name for name in gone if name not in own and not (self._may_remove and self._may_remove.search(name))
        ]
        if against:
            words = " ".join(against)
            raise Failure(
                what,
                f"{words} would be removed for it",
                "they aren't this program's to remove",
                f"remove what is in the way yourself (`apt-get remove {words}`), then run `pulumi up` again",
            )

    # The record.

    def records(self) -> dict[str, Record]:
        """What the layer added, changed or removed.

        :raises Failure: the record can't be read.
        """
        return installed.recorded(self.system, self.layer)

    def settle(self) -> None:
        """The record says what there is; what is as it was before the layer isn't in it."""
        on_system = self.installed()
        records = self.records()
        for name, record in [*records.items()]:
            record.now = on_system.present.get(name) or "-"
            # What is left of one that was removed for another of homelab's is purged with the rest.
            if record.now == record.before and name not in on_system.left:
                del records[name]
        self._write(records)

    def of_layer(self) -> list[str]:
        """What the layer added or changed and is there."""
        return [name for name, record in sorted(self.records().items()) if record.now != "-"]

    def _record(self, changes: Iterable[Change]) -> None:
        records = self.records()
        manual = set(self.marked_manual())
        for change in changes:
            record = records.get(change.name)
            if record is None or not record.now:
                mark = "manual" if change.name in manual else "auto"
                records[change.name] = Record(change.new, change.old, mark)
            else:
                record.now = change.new
        self._write(records)

    def marked_manual(self) -> list[str]:
        """The packages that were installed by hand, not for others.

        :raises Failure: apt doesn't say.
        """
        done = self.system.run.ask("apt-mark", "showmanual", seconds=_ASK_SECONDS, limit=_ANSWER_BYTES)
        installed.need_answer(done, "which packages were installed by hand", "apt-mark")
        return done.text.split("\n")

    def _write(self, records: dict[str, Record]) -> None:
        files, path = self.system.files, f"{RECORDS}/{self.layer}"
        if not records:
            files.remove(path)
            return
        lines = sorted(f"{name}\t{record.now}\t{record.before}\t{record.mark}\n" for name, record in records.items())
        content = "".join(lines).encode("utf-8", "surrogateescape")
        files.note(path, content)

    def own(self) -> set[str]:
        """What homelab's layers added."""
        layers = self.system.files.names(RECORDS)
        return {
            name
            for layer in layers
            if not layer.startswith(".")
            for name, record in installed.recorded(self.system, layer).items()
            if record.before == "-"
        }

    # Removing.

    def remove(self) -> None:
        """Purges what the layer added, and brings back what it changed or removed. What others need by now stays:
        `kept`.

        :raises Failure: apt can't do it.
        """
        self.settle()
        if not self.records():
            return
        self.repair()
        records = self.records()
        if back := self._versions_to_restore(records):
            self._bring_back(back, records)
        on_system = self.installed()
        gone = [
            name
            for name, record in records.items()
            if record.before == "-" and (name in on_system.present or name in on_system.left)
        ]
        self.purge(gone, "", "this program installed them")
        self.system.files.remove(f"{RECORDS}/{self.layer}")

    def _versions_to_restore(self, records: dict[str, Record]) -> dict[str, str]:
        """Name -> version of what had another version, or was removed, if that version can still be had."""
        present = self.installed().present
        differing = {
            name: record.before
            for name, record in records.items()
            if record.before != "-" and present.get(name) != record.before
        }
        offered = self.offered(*differing)
        for name, before in [*differing.items()]:
            if before not in offered[name]:
                self.system.log.say(
                    f"note: {name} was {before} before, which no repository has any more: it stays "
                    f"{present.get(name) or 'away'}"
                )
                self.kept.append(name)
                del differing[name]
        return differing

    def _bring_back(self, back: dict[str, str], records: dict[str, Record]) -> None:
        words = [f"{name}={version}" for name, version in back.items()]
        plan = self.simulated(*_INSTALL_ALONE, *words)
        if plan.status != 0:
            last = plan.said_text.rstrip("\n").rpartition("\n")[2]
            self.system.log.say(f"note: what was there before can't be brought back: {' '.join(words)}; {last}")
            self.kept += back
            return
        # Homelab's that stand in their way go; no others.
        self.system.log.say(f"bringing back {' '.join(words)}")
        self._carry_out(f"to bring back {' '.join(words)}", *_INSTALL_ALONE, *words, needed=words)
        self.mark("auto", [name for name in back if records[name].mark == "auto"])

    def mark(self, mark: str, names: Sequence[str]) -> None:
        """Packages count as installed by hand (`manual`), or for others alone (`auto`)."""
        if names and self._retry_while_locked("apt-mark", mark, *names).status != 0:
            self.system.log.say(f"apt-mark {mark} {' '.join(names)} failed")

    def purge(self, names: Sequence[str], what: str | None, why: str) -> bool:
        """Purges homelab's packages, but for those that others need by now (`kept`).

        :param what: what they are, for the log; None: nothing is said.
        :returns: whether any was.
        :raises Failure: apt can't do it.
        """
        gone = self._without_needed(names)
        if not gone:
            return False
        words = " ".join(gone)
        if what is not None:
            self.system.log.say(f"removing {what}{words}")
        done = self.apt("purge", *gone)
        on_system = self.installed()
        if done.status != 0 and any(name in on_system.present or name in on_system.left for name in gone):
            self.explain(done, f"to remove {words}", why)
        self.system.files.changed = True
        return True

    def make_way(self, names: Sequence[str], what: str, whose: str) -> None:
        """Removes packages whose files something else overwrites. What wasn't ours comes back with `remove`.

        :param what: what they are; `whose`: what takes their place.
        :raises Failure: a user's package would go with them, or apt can't do it.
        """
        own = self.own()
        # A user's configuration files stay; homelab's go.
        for verb, some in (("remove", {*names} - own), ("purge", own.intersection(names))):
            if some:
                self.system.log.say(f"removing {what}: {' '.join(sorted(some))}")
                self._carry_out(f"to replace {what} by {whose}", verb, *sorted(some))

    def _without_needed(self, names: Sequence[str]) -> list[str]:
        """Those that can go without anything else going or coming; the others are `kept`."""
        gone = [*names]
        while gone:
            plan = self.simulated("purge", *gone)
            if plan.status != 0:
                self.explain(plan, f"to remove {' '.join(gone)}", "this program installed them")
            if _only(plan, gone):
                return gone
            # Each alone, together with homelab's that need it: that is what apt adds.
            left = []
            for name in gone:
                simulated = self.simulated("purge", name)
                if simulated.status == 0 and _only(simulated, gone):
                    left.append(name)
                else:
                    self.kept.append(name)
                    self.system.log.say(f"note: {name} stays: others need it by now")
            if len(left) == len(gone):
                others = " ".join(change.name for change in announced(plan) if change.name not in gone)
                raise Failure(
                    f"to remove {' '.join(gone)}",
                    f"apt would change others for that: {others}",
                    "they aren't this program's to change",
                    f"see `apt-get -s purge {' '.join(gone)}`, and remove them by hand",
                )
            gone = left
        return gone

    # Downloads.

    def download(self, url: str, path: str) -> None:
        """A file fetched by https alone, redirections too. `path` is there only when all of it is; a broken transfer
        is tried again, and the next run goes on where this one ended.

        :raises Failure: it can't be had.
        """
        files, part = self.system.files, f"{path}.part"
        files.need_folder(path.rpartition("/")[0])
        self.system.log.say(f"downloading {url}")
        seconds = self.software.download_seconds
        secure = ("-fsSL", "--proto", "=https", "--proto-redir", "=https", "--connect-timeout", "20")
        # A try takes away what the one before it has fetched: none begins once the time is up.
        patience = ("--retry", "4", "--retry-all-errors", "--retry-max-time", str(seconds), "--max-time", str(seconds))
        done = self.do("curl", *secure, *patience, "-C", "-", "-o", files.name(part), url, seconds=seconds + 5)
        if done.status == 0:
            files.move(part, path)
            return
        if done.status in _FROM_THE_BEGINNING:
            files.remove(part)
        self.explain(
            done,
            url,
            "it is to be installed",
            "see whether that address answers from this system (`curl -I`); set nvidia.proxy or nvidia.mirror if it "
            "must be another way",
        )

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

    def explain_install(self, done: Done, what: str) -> NoReturn:
        """The same of an installation. What isn't known to apt may only be so as its lists couldn't be fetched. Proxmox
        VE's own repositories have nothing but what is Proxmox VE's.

        :raises Failure: always.
        """
        text = done.said_text
        symptom = recognise(text, self.software.context)
        complaints = (self.system.files.read(COMPLAINTS) or b"").decode("utf-8", "surrogateescape")
        complaints = "\n".join(line for line in _COMPLAINT.findall(complaints) if not _PROXMOX.search(line))
        if complaints and symptom and symptom[0] == "package-not-found":
            self.explain(complaints, "the lists of packages, by apt-get update", "packages are installed from them")
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


def announced(plan: Done) -> list[Change]:
    """The packages that `apt-get -s` says that it would change."""
    changes, gone = [], set()
    for words in (line.split(" ") for line in plan.said_text.split("\n")):
        if words[0] == "Inst" and len(words) > 2:
            has_old = words[2].startswith("[")
            new = words[3] if has_old and len(words) > 3 else words[2]
            changes.append(Change(words[1], words[2][1:-1] if has_old else "-", new[1:]))
        elif words[0] in ("Remv", "Purg") and len(words) > 2 and words[1] not in gone:
            gone.add(words[1])
            changes.append(Change(words[1], words[2].strip("[]"), "-"))
    return changes


def _only(plan: Done, names: Sequence[str]) -> bool:
    """Whether nothing changes but the removal of these."""
    return all(change.new == "-" and change.name in names for change in announced(plan))


def _line_of(match: re.Match[str]) -> str:
    return match.string[match.start() :].partition("\n")[0]
