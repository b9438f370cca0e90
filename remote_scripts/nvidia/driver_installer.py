"""NVIDIA's driver from NVIDIA's installer."""

from __future__ import annotations

import re

from remote_scripts.apt.apt import Apt
from remote_scripts.apt.asked import end_of
from remote_scripts.both.software import Installer
from remote_scripts.both.symptoms import Target
from remote_scripts.nvidia import driver, driver_modules, nvidia
from remote_scripts.tools.done import Done
from remote_scripts.tools.files import HOME
from remote_scripts.tools.notes import Note
from remote_scripts.tools.system import System

# While it is there, the installer hasn't come to its end: what it was to install isn't all there.
_BEGUN = f"{HOME}/nvidia-run-begun"
DOWNLOADS = f"{HOME}/downloads"
_OWN_LOG = "/var/log/nvidia-installer.log"
#: What the installer has installed for us.
INSTALLED = Note(f"{HOME}/nvidia-run", Installer)


def fetch(apt: Apt, installer: Installer) -> str:
    """The installer, compared with its checksum: it runs as root, and what can replace it can replace the checksum
    that is published beside it; returns its path.

    :raises Failure: it can't be had, or is another file.
    """
    path = installer.file(DOWNLOADS)
    apt.system.files.need_folder(DOWNLOADS)
    apt.system.log.say(f"downloading {installer.url}")
    done = apt.download(installer.url, path, installer.sha256)
    if done.status != 0:
        apt.system.files.remove(f"{path}.FAILED")  # apt's name of another file than the wanted one
        apt.explain(
            done,
            installer.url,
            "it is to be installed",
            "see whether that address answers from this system (`curl -I`); set nvidia.proxy or nvidia.mirror if it "
            "must be another way",
        )
    return path


def run(apt: Apt, installer: Installer, target: Target) -> None:
    """Installs the driver.

    :raises Failure: the installer fails.
    """
    system = apt.system
    arguments = [*installer.arguments, *(_clear_the_way(apt, installer, target) if target != "lxc" else ())]
    # What it puts there is ours, before it begins.
    INSTALLED.write(system.files, installer)
    system.files.note(_BEGUN, b"")
    system.log.say(f"installing NVIDIA's driver {installer.version} from its installer")
    done = _start(apt, installer.file(DOWNLOADS), *arguments)
    if done.status != 0:
        # Its own log says more than what it prints; the compiler's is another one.
        apt.explain(
            f"{done.said_text}{end_of(system, _OWN_LOG, 60)}",
            f"NVIDIA's driver {installer.version}, by its installer",
            "what follows needs it",
        )
    system.files.remove(_BEGUN)
    system.files.remove_tree(DOWNLOADS)
    system.files.changed = True


def is_whole(system: System) -> bool:
    """Whether the installer has come to its end, where it was begun."""
    return not system.files.exists(_BEGUN)


def is_there(system: System) -> bool:
    """Whether it has left anything, whoever ran it, and however far it came."""
    return bool(driver.run_version(system) or INSTALLED.read(system.files) or not is_whole(system))


def _clear_the_way(apt: Apt, installer: Installer, target: Target) -> list[str]:
    """The installer without questions gives up where a module is loaded or nouveau has the card: what it would
    have done at their place comes at the next boot. An older one, which can't be told so, says it.

    :returns: further arguments.
    """
    driver_modules.blacklist(apt, target)
    arguments = ["--no-check-for-alternate-installs"]
    if nvidia.loaded(apt.system).version and is_at_least("545.23.06", installer.version):
        arguments.append("--allow-installation-with-running-driver")
    if driver.holder(apt.system) and is_at_least("550.40.07", installer.version):
        arguments += ["--no-nouveau-check", "--skip-module-load"]
    return arguments


def _start(apt: Apt, path: str, *arguments: str) -> Done:
    """It unpacks more than a gigabyte, which /tmp and /run, in memory, may not have."""
    files, unpacked = apt.system.files, f"{DOWNLOADS}/unpacked"
    files.remove_tree(unpacked)  # of one that was killed
    files.need_folder(unpacked)
    return apt.do("env", f"TMPDIR={files.name(unpacked)}", "sh", files.name(path), *arguments)


def remove(apt: Apt) -> None:
    """Takes away what the installer has put there, whoever ran it: its files and those of packages have the same names.
    It notes each file as soon as it is there (NVIDIA/nvidia-installer, command-list.c). Its uninstaller is one of the
    first files to come and to go: if a kill has left none, the installer itself removes the files.

    :raises Failure: it can't be removed.
    """
    system = apt.system
    version, record = driver.run_version(system), INSTALLED.read(system.files)
    has_uninstaller = system.files.is_file(driver.UNINSTALL)
    # An uninstallation that was cut short may have left no library.
    if version or (record and (has_uninstaller or not is_whole(system))):
        if record:
            system.files.note(_BEGUN, b"")
        else:
            system.log.say(
                f"note: replacing the driver {version} which was installed by hand with NVIDIA's installer; it doesn't "
                "come back"
            )
        if has_uninstaller or not record:
            done = apt.do(system.files.name(driver.UNINSTALL), "--silent")
        else:
            done = _start(apt, fetch(apt, record), "--uninstall", "--silent")
        if done.status != 0:
            apt.explain(done, "what NVIDIA's installer has installed, removed", "two drivers don't go together")
        system.files.changed = True
    system.files.remove(_BEGUN, INSTALLED.path)


def is_at_least(wanted: str, found: str) -> bool:
    """Whether a version is that one, or a later one."""
    return [*map(int, re.findall("[0-9]+", found))] >= [*map(int, re.findall("[0-9]+", wanted))]
