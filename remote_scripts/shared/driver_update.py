"""An update of NVIDIA's driver: what is there is kept before anything changes, and put back where the new one can't be
installed, built, loaded or used. The way back needs no network.

/var/lib/homelab/update/kept says what is kept (`Kept`), and how far the update is, its phase:

- keeping: nothing is changed yet, the next run begins anew;
- trying: the next run goes on forwards, or back if what was there is wanted by then;
- back: the next run first goes on with that, then tries anew;
- tried: installed, and not loaded before a boot: kept until the new one was seen at work.

Beside it are the packages' files, or the installer.

/var/lib/homelab/given-up is the version of an update that was given up after a boot, for the next reading: a line of
drift. GIVEN_UP, a file of apt's, holds the packages that were put back at their version: the pin of the settings'
version would have the next upgrade by hand install what has failed. It goes with the next try.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from remote_scripts.shared import driver, driver_installer, driver_modules, kernel, nvidia
from remote_scripts.shared.driver import FAMILY, UPDATE, Left
from remote_scripts.shared.notes import Note
from remote_scripts.shared.nvidia import Module
from remote_scripts.shared.packages import Packages
from remote_scripts.shared.software import Installer
from remote_scripts.shared.symptoms import Target
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.run import Done
from remote_scripts.tools.system import System

#: Before homelab-nvidia by its name: of several pins for a version, the first counts (apt_preferences(5)).
GIVEN_UP = "/etc/apt/preferences.d/homelab-given-up"
VERSION_GIVEN_UP = f"{HOME}/given-up"
_CACHE = "/var/cache/apt/archives"
_SYNC_SECONDS = 600.0

Phase = Literal["", "keeping", "trying", "back", "tried"]


@dataclass(frozen=True)
class Package:
    """A package that is kept. `mark`: auto or manual."""

    name: str
    version: str
    mark: str

    def file_in(self, packages: Packages, folder: str) -> str:
        """Its file's path in a folder, as apt calls it; empty where it isn't there."""
        name, _, architecture = self.name.partition(":")
        start = f"{name}_{self.version.replace(':', '%3a')}_{architecture}"
        # Of the system's own architecture it comes first: `all`, `amd64`, `i386`.
        names = (name for name in packages.system.files.names(folder) if name.startswith(start))
        return next((f"{folder}/{name}" for name in names if name.endswith(".deb")), "")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is noted of an update. `phase`: empty where there is none; `driver`: that is kept; `kernels`: that had its
    modules; `left`, `installer`: what was noted of it; `blacklist`: ours was there; `loaded`, `worked`: it was loaded,
    and answered; `lacking`: libraries that were demanded of it, and weren't there; `lost`: what could not be kept;
    `new`: the version that was taken back.
    """

    phase: Phase = ""
    driver: Module = field(default_factory=Module)
    kernels: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()
    left: Left | None = None
    installer: Installer | None = None
    blacklist: bool = False
    loaded: bool = False
    worked: bool = False
    lacking: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    new: str = ""


_NOTE = Note(f"{UPDATE}/kept", Kept)


def noted(system: System) -> Kept:
    """What is noted of an update of the driver.

    :raises OSError: that can't be read.
    """
    return _NOTE.read(system.files) or Kept()


class Update:
    """The update of one system's driver.

    :param packages: of the driver's layer.
    """

    def __init__(self, packages: Packages, target: Target) -> None:
        self._packages = packages
        self._system = packages.system
        self._files = packages.system.files
        self._target = target
        #: What nvidia-smi has said.
        self.answer = Done(0, b"")

    @property
    def kept(self) -> Kept:
        """What is noted of it.

        :raises OSError: that can't be read.
        """
        return noted(self._system)

    def note(self, **changes: Any) -> None:
        """Notes more of it."""
        _NOTE.write(self._files, replace(self.kept, **changes))

    def close(self) -> None:
        """Its end. Without the note the rest is litter."""
        self._files.remove(_NOTE.path)
        self._files.remove_tree(UPDATE)

    def let_go(self) -> None:
        """Another version may be installed again."""
        self._files.drop(self._packages.layer, GIVEN_UP)

    def serves_cards(self) -> bool:
        """Whether nvidia-smi answers; `said` has what it says."""
        self.answer = self._packages.do("nvidia-smi", "-L", seconds=60)
        return self.answer.status == 0

    # Keeping.

    def keep(self, wanted: str, libraries: Iterable[str]) -> None:
        """Keeps what is there. What can't be had any more is named (`lost`), and the update goes on without a way back:
        a distribution's archive has one version at a time, and its updates would be refused for ever.

        :param wanted: the driver that is to come, for the log.
        :param libraries: those that are demanded.
        :raises Failure: it can't be kept now.
        """
        self.close()
        files, system = self._files, self._system
        version = driver.library_version(system)
        releases = driver.kernels_of(system, self._target) if self._target != "lxc" else []
        there = {release: driver.module(system, release) for release in releases}
        modules = {release: module for release, module in there.items() if module.version == version}
        system.log.say(f"keeping the driver {version}, in case {wanted} can't be had")
        is_loaded = nvidia.loaded(system).version == version
        self.note(
            phase="keeping",
            driver=next(iter(modules.values()), Module(version)),
            kernels=tuple(modules),
            left=driver.NOTE.read(files),
            blacklist=files.has_put(self._packages.layer, driver_modules.BLACKLIST),
            loaded=is_loaded,
            worked=is_loaded and self.serves_cards(),
            lacking=tuple(driver.lacking(system, libraries)),
        )
        lost = self._keep_packages() + self._keep_installer()
        self.note(lost=tuple(lost))
        if lost:
            system.log.say(
                f"note: the driver from before could not be put back: no repository and no cache has {' '.join(lost)}"
            )
        done = system.run.ask("sync", "-f", files.name(UPDATE), seconds=_SYNC_SECONDS)
        if done.status != 0:
            raise Failure(
                f"the driver {version}, kept in {UPDATE}, on the disk",
                done.failure("sync"),
                "an update that fails is undone with it",
                "see whether that disk still takes writes (`dmesg`), then run `pulumi up` again",
            )

    def _keep_packages(self) -> list[str]:
        """The driver's packages; returns those that are nowhere any more."""
        packages, files = self._packages, self._files
        manual = set(packages.marked_manual())
        family = [
            Package(name, version, "manual" if name in manual else "auto")
            for name, version in sorted(packages.installed().whole.items())
            if FAMILY.search(name)
        ]
        self.note(packages=tuple(family))
        offered = packages.offered(*(package.name for package in family))
        fetched, lost = [], []
        for package in family:
            if package.version in offered[package.name]:
                fetched.append(f"{package.name}={package.version}")
            elif cached := package.file_in(packages, _CACHE):
                files.copy(cached, f"{UPDATE}/{cached.rpartition('/')[2]}")
            else:
                lost.append(f"{package.name}={package.version}")
        # Without all of them there is no way back, and the others are of no use.
        if lost or not fetched:
            return lost
        done = packages.apt("download", *fetched, folder=UPDATE)
        if done.status != 0:
            packages.explain(
                done,
                f"the packages of the driver that is there, kept: {' '.join(fetched)}",
                "an update that fails is undone with them",
            )
        return []

    def _keep_installer(self) -> list[str]:
        """Of an installer that this program ran it is noted where it came from; where somebody else's came from nobody
        knows.
        """
        version = driver.run_version(self._system)
        if not version:
            return []
        installer = driver_installer.INSTALLED.read(self._files)
        if installer is None or not installer.url or installer.version != version:
            return [f"NVIDIA's-installer={version}"]
        self.note(installer=installer)
        driver_installer.fetch(self._packages, installer, installer.file(UPDATE))
        return []

    # Putting back.

    def restore(self) -> str:
        """Puts back what was kept, from wherever an update has come to.

        :returns: in words, what there is then.
        :raises Failure: it can't be put back; the next run goes on with it.
        """
        packages, system, files = self._packages, self._system, self._files
        kept = self.kept
        system.log.say(f"putting the driver {kept.driver.version} back")
        packages.repair()
        installer = kept.installer
        # Of one version it may have been run with other arguments since.
        is_there = (
            installer is not None
            and driver_installer.is_whole(system)
            and driver.run_version(system) == installer.version
        )
        if not is_there or installer != driver_installer.INSTALLED.read(files):
            driver_installer.remove(packages)
        files.remove_tree(driver_installer.DOWNLOADS)
        self._put_packages_back()
        self._hold_back()
        if installer and not (driver_installer.is_whole(system) and driver.run_version(system) == installer.version):
            driver_installer.fetch(packages, installer, installer.file(UPDATE))
            driver_installer.run(packages, installer, installer.file(UPDATE), self._target)
        kernels = self._kernels_to_build()
        for release in kernels:
            driver_modules.build(packages, kept.driver, release)
        if not kept.blacklist:
            driver_modules.drop_blacklist(packages)
        if self._target != "lxc":
            driver_modules.renew_initramfs(packages, self._target)
        if kept.left:
            driver.NOTE.write(files, kept.left)
        else:
            files.remove(driver.NOTE.path)
        version = driver.library_version(system)
        if version != kept.driver.version:
            raise Failure(
                f"the libraries of the driver {kept.driver.version}, put back",
                f"they are {version}",
                "they must be of the modules' version",
                "see what is installed (`dpkg -l '*nvidia*'`), then run `pulumi up` again",
            )
        modules = f", and its modules for {' '.join(kernels)}" if kernels else ""
        return f"its libraries{modules}{self._restart_users(version)}"

    def _kernels_to_build(self) -> list[str]:
        """Those that had its modules and are there still, and the running one, which may have come since."""
        noted, running = self.kept.kernels, kernel.running(self._system)
        there = driver.kernels_of(self._system, self._target)
        return [version for version in there if version in noted or version == running] if noted else []

    def _put_packages_back(self) -> None:
        packages = self._packages
        kept = self.kept.packages
        names = {package.name for package in kept}
        installed, own = packages.installed(), packages.own()
        there = {*installed.present, *installed.left}
        gone = sorted(name for name in there if FAMILY.search(name) and name not in names and name in own)
        missing = [package for package in kept if installed.whole.get(package.name) != package.version]
        if missing:
            if self._target == "host":
                self._files.set_pending(driver_modules.INITRAMFS)
            kept_files = {package: package.file_in(packages, UPDATE) for package in missing}
            if gone_files := [f"{package.name}={package.version}" for package, path in kept_files.items() if not path]:
                raise Failure(
                    f"the packages of the driver that was kept in {UPDATE}",
                    f"not there any more: {' '.join(gone_files)}",
                    "the driver from before is put back with them",
                    "run `pulumi up` again: it goes on with the driver that the settings name",
                )
            words = [self._files.name(path) for path in kept_files.values()]
            # In one go with the removal of those that came instead: packages of two versions have files of the same
            # names.
            words += [f"{name}-" for name in gone if name in installed.present]
            packages.put_back(words, [f"{package.name}={package.version}" for package in missing])
        packages.purge(gone, None, "they belong to the update that failed")
        for mark in ("auto", "manual"):
            packages.mark(mark, [package.name for package in kept if package.mark == mark])
        packages.settle()

    def _hold_back(self) -> None:
        """What was put back stays at its version: above the pin of what is wanted."""
        kept = self.kept.packages
        if kept:
            pins = [
                f"Package: {package.name}\nPin: version {package.version}\nPin-Priority: 1002\n" for package in kept
            ]
            self._files.put(self._packages.layer, GIVEN_UP, 0o644, "\n".join(pins).encode())
            self._files.finish()

    def _restart_users(self, version: str) -> str:
        """Brings it into use where that can be done now; returns what is so, in words."""
        packages, system = self._packages, self._system
        loaded = nvidia.loaded(system).version
        start_daemon = None
        if loaded and loaded != version:
            if self._target == "lxc":
                return f"; the host's driver is {loaded}, with which they don't work"
            start_daemon = driver_modules.unload(packages)
            if start_daemon is None:
                return f"; {loaded} is still loaded and in use: {version} is loaded at the next boot"
        if self._target != "lxc" and not nvidia.loaded(system).version and (loaded or self.kept.loaded):
            driver_modules.load_module(packages, version)
        if start_daemon:
            start_daemon()
        if nvidia.loaded(system).version != version or not self.kept.worked:
            return ""
        if not self.serves_cards():
            packages.explain(
                self.answer, f"the driver {version}, put back, answering nvidia-smi", "it did before the update"
            )
        return "; nvidia-smi answers"
