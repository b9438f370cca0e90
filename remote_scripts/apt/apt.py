"""apt and dpkg for a layer: what they would do, what they do, and what the layer has added.

/var/lib/homelab/packages/LAYER has a line for each package that the layer added, changed or removed: name, version now,
version before, apt's mark, tabs between; `-` for a package that isn't there. It is written before apt is called, so
that a run which is killed leaves nothing unknown behind, and brought to what really is there at the end. What goes
again is what apt itself calls unneeded once the layer's packages aren't wanted by hand any more, as far as it came with
the layer. A package that came for others, and that its owner has asked for since, is his.

/var/lib/homelab/steps/STEP, a layer without `nvidia-`, has the name under which the settings have the system: a system
that was reinstalled, or went back to a snapshot, tells of no step that was carried out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NoReturn

from remote_scripts.apt.asked import HELPER, INSTALL, AskedApt
from remote_scripts.apt.packages import RECORDS, Record, Reverted, recorded
from remote_scripts.both.software import Software
from remote_scripts.both.symptoms import recognise
from remote_scripts.tools.done import TIMED_OUT, Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

_STEPS = f"{HOME}/steps"
_INTERRUPTED = "/var/lib/dpkg/updates"
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "APT_LISTCHANGES_FRONTEND": "none"}
# What is suggested nothing had come for.
_UNNEEDED = ("autoremove", "-o", "APT::Protect-Kernels=false", "-o", "APT::AutoRemove::SuggestsImportant=false")
# An owner's images and volumes go with a purge of them.
_WITH_DATA = {"docker.io", "podman", "containerd"}
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
_NOTHING = re.compile(r"(?!)")


class Apt(AskedApt):
    """apt and dpkg for one layer, and the layer's record; arguments as of `AskedApt`."""

    def __init__(self, system: System, software: Software, layer: str, doing: str = "packages") -> None:
        super().__init__(system, software, layer, doing)
        self._step = f"{_STEPS}/{layer.removeprefix('nvidia-')}"
        # What apt-get update complained of, where it did.
        self._complaints = ""

    # The step.

    def note_step(self) -> None:
        """Notes that it is carried out."""
        self.system.files.note(self._step, f"{self.software.context.name}\n".encode())

    def is_anothers(self) -> bool:
        """Whether the step was last carried out under another name of the settings. If a system gets a new name there,
        the step is done under the new name first, then undone under the old one. By then everything belongs to the new
        name.

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

    # Doing.

    def do(self, *arguments: str, seconds: float = 0) -> Done:
        """A program that takes long, and may change what is installed.

        :param seconds: by default as long as an installation may take.
        """
        self._installed = None
        return self.system.run.do(
            *arguments,
            seconds=seconds or self.software.install_seconds,
            doing=self._doing,
            environment=_ENVIRONMENT,
        )

    def get(self, *arguments: str, seconds: float = 0) -> Done:
        """apt-get, which asks nothing and keeps all configuration."""
        options = [f"DPkg::Lock::Timeout={self.software.lock_seconds}", "Acquire::Retries=3", "Dpkg::Use-Pty=0"]
        # What dpkg was unpacking when it was killed can be removed, too: its state is reinst-required.
        options += [f"Dpkg::Options::=--force-{what}" for what in ("confdef", "confold", "remove-reinstreq")]
        command = ["apt-get", "-y", "-q", *(word for option in options for word in ("-o", option))]
        return self._retry_while_locked(*command, *arguments, seconds=seconds)

    def _retry_while_locked(self, *arguments: str, seconds: float = 0) -> Done:
        """Waits for others' locks: apt-get itself for dpkg's, this for those that it doesn't wait for."""
        for wait in self.system.work.tries(self.software.lock_seconds):
            done = self.do(*arguments, seconds=seconds)
            lock = _LOCKED.search(done.said_text)
            if done.status == 0 or not lock:
                break
            line = done.said_text[lock.start() :].partition("\n")[0]
            wait.what = f"waiting for another one's lock: {line}"
        return done

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
        if self._retry_while_locked(*configure).status:
            self.get("install", "-f", "--no-remove")

    def install(
        self,
        words: Iterable[str],
        *,
        recommends: bool = False,
        may_remove: re.Pattern[str] = _NOTHING,
    ) -> None:
        """Packages for the layer. What apt-get announces is added to the record, done, and compared with what is there
        then: apt-get also fails if an unrelated package can't be configured, and that does no harm here. What is there
        at its version stays untouched, and keeps its mark; a version may go down.

        :param words: NAME or NAME=PATTERN; NAME-, of one that goes.
        :param recommends: with what they recommend.
        :param may_remove: names that may go, besides what this program added.
        :raises Failure: they can't be had.
        """
        words = [*words]
        if not all(map(self.is_whole, words)):
            self.repair()
        self.settle()
        words = [word for word in words if not self.is_whole(word)]
        if not words:
            return
        what = f"to install {' '.join(words)}"
        plan = self.simulate_install(words, recommends=recommends)
        if plan.why:
            self.explain_install(plan.why, what)
        self.need_own(self.of_others(plan.going, may_remove), what)
        names = {word.partition("=")[0] for word in words}
        automatic = names & self.installed().present.keys() & self.marked("auto")
        self._note(plan.changes)
        self.system.log.say(f"installing {' '.join(words)}")
        self.system.files.changed = True
        # It fetches gigabytes, too: a slow line mustn't end it while it unpacks.
        seconds = self.software.download_seconds + self.software.install_seconds
        more = ("--install-recommends",) if recommends else ()
        done = self.get(*INSTALL, *more, *words, seconds=seconds)
        self.mark("auto", automatic)
        self.settle()
        there = self.installed()
        is_done = [there.whole.get(name) == version for name, version in plan.coming.items()]
        is_done += [name not in there.present for name in plan.going]
        is_done += [self.is_whole(word) for word in words if not word.endswith("-")]
        if not all(is_done):
            self.explain_install(done, what)

    def download(self, url: str, path: str, sha256: str) -> Done:
        """A large file, which apt compares with its checksum; of one that broke off it fetches the rest."""
        words = ("-o", "Acquire::Retries=3", "download-file", url, self.system.files.name(path), f"SHA256:{sha256}")
        return self.do(HELPER, *words, seconds=self.software.download_seconds)

    def fetch_packages(self, words: Sequence[str], *, recommends: bool = False) -> None:
        """Into apt's cache, before what they replace goes; arguments as of `install`.

        :raises Failure: they can't be had.
        """
        more = ("--install-recommends",) if recommends else ()
        done = self.get(*INSTALL, *more, "--download-only", *words, seconds=self.software.download_seconds)
        if done.status != 0:
            self.explain_install(done, f"to fetch {' '.join(words)}")

    def of_others(self, names: Iterable[str], may_remove: re.Pattern[str] = _NOTHING) -> list[str]:
        """Of packages that would go those that no layer of homelab's has added, nor may be removed."""
        own = {
            name
            for layer in self.system.files.names(RECORDS)
            for name, record in recorded(self.system, layer).items()
            if record.before == "-"
        }
        return sorted(name for name in names if name not in own and not may_remove.search(name))

    def need_own(self, against: Sequence[str], what: str) -> None:
        """:param against: others' packages that would go.
        :raises Failure: there are any.
        """
        if words := " ".join(against):
            raise Failure(
                what,
                f"{words} would be removed for it",
                "they aren't this program's to remove",
                f"remove what is in the way yourself (`apt-get remove {words}`), then run `pulumi up` again",
            )

    def mark(self, mark: Literal["auto", "manual"], names: Collection[str]) -> bool:
        """Packages count as installed for others alone, or by hand; returns whether that could be done."""
        if not (others := sorted({*names} - self.marked(mark))):
            return True
        self._note()
        return self._retry_while_locked("apt-mark", mark, *others).status == 0

    def tidy(self, wanted: Collection[str] = (), *, recommends: bool = False) -> list[str]:
        """What came with the layer, isn't wanted and isn't needed any more is purged.

        :param wanted: names.
        :param recommends: what is recommended is needed.
        :returns: what stays all the same, as others need it.
        :raises Failure: apt can't do it.
        """
        self.settle()
        came, wanted = {name for name, record in self.records().items() if record.before == "-"}, {*wanted}
        if not came:
            return []
        ours = came & self.installed().present.keys()
        is_marked = self.mark("manual", ours & wanted) & self.mark("auto", ours - wanted)
        self.settle()
        important = f"APT::AutoRemove::RecommendsImportant={'true' if recommends else 'false'}"
        with self.aside() as other:  # where nothing is protected by its name
            plan = other.simulate(*_UNNEEDED, "-o", important)
        if plan.why or not is_marked:
            self.explain(plan.why or "apt-mark failed", "to remove what isn't wanted", "this program installed it")
        left = came & self.installed().left - wanted - _WITH_DATA
        gone = [*(name for name in plan.going if name in came), *sorted(left)]
        if not self._goes_alone(gone, came):  # others need it that nothing needs
            gone = [name for name in gone if self._goes_alone([name], came)]
        if gone:
            self._purge(gone)
        return sorted(came & self.installed().present.keys() - wanted)

    def _goes_alone(self, names: Sequence[str], came: set[str]) -> bool:
        return not names or came.issuperset(self.simulate("purge", *names).going)

    def _purge(self, names: Sequence[str]) -> None:
        words = " ".join(names)
        self._note()
        self.system.log.say(f"removing {words}")
        if with_data := [name for name in names if name in _WITH_DATA]:
            self.get("remove", *with_data)
        done = self.get("purge", *(name for name in names if name not in with_data))
        self.settle()
        if done.status != 0 and {*names} & {*self.records()}:
            self.explain(done, f"to remove {words}", "this program installed them")
        self.system.files.changed = True

    # The record.

    def records(self) -> dict[str, Record]:
        """What the layer added, changed or removed.

        :raises OSError: the record can't be read.
        """
        return recorded(self.system, self.layer)

    def settle(self) -> None:
        """The record says what there is; what is as it was before the layer isn't in it, nor what is its owner's by
        now.
        """
        if not (records := self.records()):
            return
        there, automatic = self.installed(), self.marked("auto")
        kept = {}
        for name, record in records.items():
            now, mark = there.present.get(name) or "-", "auto" if name in automatic else "manual"
            is_theirs = record.mark == "auto" and mark == "manual" and name in there.whole
            # What is left of one that was removed for another of homelab's is purged with the rest.
            if not is_theirs and (now != record.before or name in there.left):
                kept[name] = Record(now, record.before, mark)
        self._write(kept)

    def _note(self, changes: Mapping[str, Record] = {}) -> None:
        """What is going to change. Marks count again once this is settled: an apt that is killed loses them."""
        records = {**changes, **self.records()}
        self._write({name: Record(record.now, record.before) for name, record in records.items()})

    def of_layer(self) -> list[str]:
        """What the layer added or changed and is there."""
        return [name for name, record in sorted(self.records().items()) if record.now != "-"]

    def _write(self, records: Mapping[str, Record]) -> None:
        files, path = self.system.files, f"{RECORDS}/{self.layer}"
        if not records:
            files.remove(path)
            return
        lines = sorted(f"{name}\t{one.now}\t{one.before}\t{one.mark}\n" for name, one in records.items())
        files.note(path, "".join(lines).encode("utf-8", "surrogateescape"))

    # What failures mean.

    def explain_install(self, done: Done | str, what: str) -> NoReturn:
        """The same of an installation. What isn't known to apt may only be so as its lists couldn't be fetched. Proxmox
        VE's own repositories have nothing but what is Proxmox VE's.

        :raises Failure: always.
        """
        symptom = recognise(done if isinstance(done, str) else done.said_text, self.software.context)
        if self._complaints and symptom and symptom[0] == "package-not-found":
            self.explain(self._complaints, "the lists of packages, by apt-get update", "packages come from them")
        self.explain(done, what, "what follows needs it")
