"""How the host boots: its loader, its kernel command lines, and what is there for the next boot."""

from __future__ import annotations

from remote_scripts.boot import boot, trial
from remote_scripts.boot.loaders import found as loaders
from remote_scripts.boot.loaders.found import Found
from remote_scripts.boot.loaders.loader import Loader
from remote_scripts.reading.answer import CommandLines
from remote_scripts.reading.source import Source, lines_of
from remote_scripts.tools.errors import Failure

# Their versions decide which options of cards Proxmox VE knows, and what runs in containers.
_PACKAGES = ("pve-manager", "qemu-server", "lxc-pve")


def loader(source: Source) -> Found:
    """Who makes the kernel command line."""
    return source.noting(boot.UUIDS, lambda: loaders.find(source.system), Found(None))


def command_lines(source: Source, loader: Loader | None) -> CommandLines:
    """All of them; those of the next boot empty where it can't be told what makes them."""
    system = source.system
    running = source.files.text("/proc/cmdline")
    if not loader or not loader.is_configurable(system):
        return CommandLines(running, "", "", "")
    # What a trial is to bring has not drifted before that is confirmed.
    to_come: dict[str, str] | None = source.noting(trial.NOTE, lambda: trial.to_come(system), None)
    configured = source.noting(loader.file, lambda: loader.configured(system, to_come), "")
    others = source.noting(loader.file, lambda: loader.configured(system, {}), "")
    generated = ""
    if to_come is None:
        generated = source.noting(boot.GRUB_MENU, lambda: loaders.GRUB.generated(system), "")
    return CommandLines(running, configured, others, generated)


def next_boot(source: Source) -> dict[str, str]:
    """Why the default entry doesn't start, as an error's parts; empty: nothing is known against it."""
    try:
        loaders.need_default(source.system)
    except Failure as failure:  # a menu that can't be read says nothing, and is noted elsewhere
        return {} if isinstance(failure, OSError) else vars(failure)
    return {}


def packages(source: Source) -> dict[str, str]:
    """Versions of packages, by their names; of those that are installed whole."""
    form = "${Package} ${db:Status-Status} ${Version}\n"
    lines = lines_of(source.ask("dpkg-query", "-W", f"-f={form}", *_PACKAGES).text)
    words = (line.split() for line in lines)
    return {fields[0]: fields[2] for fields in words if len(fields) == 3 and fields[1] == "installed"}
