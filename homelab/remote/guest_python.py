"""Python in a VM that has none, in which this program's part there is written: a package of NVIDIA's stack.

What apt brings with it is noted in the VM before it comes, as the layer nvidia-repository notes its own packages. That
layer's undoing is the last one in the VM, and takes it away again, unless others need it by then.
"""

from __future__ import annotations

import re
import shlex
import time

from homelab.errors import HomelabError
from homelab.remote import scripts
from homelab.remote.ssh import Session
from homelab.settings.nvidia import Nvidia
from remote_scripts.shared.installed import RECORDS, Record

_PACKAGE = "python3"
_RECORD = f"{RECORDS}/nvidia-repository"
_QUIET = ("env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1", "APT_LISTCHANGES_FRONTEND=none")
# More than a command's own time, so that it is the command which ends.
_SPARE_SECONDS = 30.0
_LOOK_SECONDS = 2.0
_LOCKED = re.compile(r"^E: .*(Could not get lock|Unable to lock directory)", re.MULTILINE)
# `Inst NAME [VERSION BEFORE] (VERSION …`; without brackets it isn't there.
_INSTALLED = re.compile(r"^Inst (\S+) (?:\[(\S+)\] )?\((\S+) ", re.MULTILINE)
_REMOVED = re.compile(r"^(?:Remv|Purg) (\S+)", re.MULTILINE)
_NOTE = """\
set -e
umask 077
record="$ROOT"{path}
new="${{record%/*}}/.${{record##*/}}.homelab-tmp"
mkdir -p "${{record%/*}}"
printf %s {content} >"$new"
sync
mv -f "$new" "$record"
sync
"""


def install(session: Session, system: str, settings: Nvidia) -> None:
    """Installs it.

    :param session: the VM.
    :param system: its place in the settings, for messages.
    :raises HomelabError: apt can't do it, or would remove something for it.
    """
    apt = _Apt(session, system, settings)
    # A repository that can't be reached may be of no matter for it.
    apt.run("-q", "update", seconds=settings.timeouts.download)
    words = ("--no-install-recommends", "install", _PACKAGE)
    announced = apt.done("-s", "-q", *words, seconds=settings.timeouts.lock)
    if removed := _REMOVED.findall(announced):
        raise apt.failed(f"{' '.join(sorted({*removed}))} would be removed for it")
    manual = ""
    if any(old for _, old, _ in _INSTALLED.findall(announced)):
        _, manual = _run(session, ("apt-mark", "showmanual"), settings.timeouts.lock)
    before = session.run("look", f'record="$ROOT"{_RECORD}; [ ! -e "$record" ] || cat "$record"\n')
    content = shlex.quote(noted(before, announced, manual))
    session.run("note", _NOTE.format(path=_RECORD, content=content))
    apt.done("-y", "-q", "-o", "Dpkg::Use-Pty=0", *words, seconds=settings.timeouts.install)


def noted(before: str, announced: str, manual: str) -> str:
    """The record of what the layer has installed, with what apt is about to do.

    :param before: the record so far.
    :param announced: what `apt-get -s` says.
    :param manual: the packages that are marked as installed by hand.
    """
    lines = (line.split("\t") for line in before.splitlines())
    known = {words[0]: Record(*words[1:]) for words in lines if len(words) == 4}
    by_hand = {*manual.split()}
    for name, old, new in _INSTALLED.findall(announced):
        first = known.get(name) or Record("", old or "-", "manual" if name in by_hand else "auto")
        known[name] = Record(new, first.before, first.mark)
    return "".join(f"{name}\t{one.now}\t{one.before}\t{one.mark}\n" for name, one in sorted(known.items()))


class _Apt:
    def __init__(self, session: Session, system: str, settings: Nvidia) -> None:
        self._session = session
        self._system = system
        self._lock_seconds = settings.timeouts.lock
        proxy = shlex.quote(settings.proxy_address) if settings.proxy else ""
        # By bash itself: what a program is started with, anybody may see.
        self._begin = f"export http_proxy={proxy} https_proxy={proxy}\n" if proxy else ""

    def run(self, *arguments: str, seconds: int) -> tuple[int, str]:
        """apt-get's exit status, and what it says. Another one that has its locks is waited for."""
        options = ("-o", f"DPkg::Lock::Timeout={self._lock_seconds}", "-o", "Acquire::Retries=3")
        until = time.monotonic() + self._lock_seconds
        while True:
            status, said = _run(
                self._session, (*_QUIET, "apt-get", *options, *arguments), seconds + self._lock_seconds, self._begin
            )
            if status == 0 or not _LOCKED.search(said) or time.monotonic() >= until:
                return status, said
            time.sleep(_LOOK_SECONDS)

    def done(self, *arguments: str, seconds: int) -> str:
        """What apt-get says.

        :raises HomelabError: it fails.
        """
        status, said = self.run(*arguments, seconds=seconds)
        if status:
            raise self.failed(f"apt-get ends with exit status {status}: {said.strip()[-1000:]}")
        return said

    def failed(self, found: str) -> HomelabError:
        return HomelabError(
            wanted=f"{self._system}: {_PACKAGE}, which isn't there, by apt-get",
            found=found,
            why="what this program does in a VM is written in Python; it installs it, and takes it away again",
            next="log in to the VM and mend that, or install it yourself (`apt-get install python3`); then run "
            "`pulumi up` again",
        )


def _run(session: Session, command: tuple[str, ...], seconds: int, begin: str = "") -> tuple[int, str]:
    text = session.run(command[0], begin + scripts.host_command(command, seconds), seconds + _SPARE_SECONDS)
    said, _, status = text.rstrip("\n").rpartition("\n")
    return int(status), said
