"""An update of NVIDIA's driver: the packages of the one that is there are kept before anything changes, and put back
where the new one can't be installed, built, loaded or used. The way back needs no network: their files lie in
/var/lib/homelab/update, as apt knows no version that its lists haven't, and an owner may empty its cache.

/var/lib/homelab/update/kept says what is kept (`Kept`), and how far the update is, its phase:

- trying: the next run goes on forwards, or back if what was there is wanted by then;
- back: the next run first goes on with that, then tries anew;
- tried: installed, and not loaded before a boot: kept until the new one was seen at work.

/var/lib/homelab/given-up is the version of an update that was given up after a boot, for the next reading: a line of
drift. What was put back apt's pins hold at its version: those of the settings would have the next upgrade by hand
install what has failed. Both go with the next try.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from remote_scripts.apt.apt import Apt
from remote_scripts.apt.asked import AskedApt
from remote_scripts.both.symptoms import Target
from remote_scripts.nvidia import driver, driver_installer, driver_modules, nvidia
from remote_scripts.nvidia.driver import FAMILY, PINS, UPDATE, Left
from remote_scripts.nvidia.nvidia import Module
from remote_scripts.tools import kernel
from remote_scripts.tools.done import Done
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.notes import Note
from remote_scripts.tools.system import System

VERSION_GIVEN_UP = f"{HOME}/given-up"
_CACHE = "/var/cache/apt/archives"

Phase = Literal["", "trying", "back", "tried"]


@dataclass(frozen=True)
class Package:
    """A package that is kept. `mark`: auto or manual."""

    name: str
    version: str
    mark: Literal["auto", "manual"]

    @property
    def word(self) -> str:
        """As apt is asked for it."""
        return f"{self.name}={self.version}"

    def file_in(self, apt: AskedApt, folder: str) -> str:
        """Its file's path in a folder, as apt calls it; empty where it isn't there."""
        name, _, architecture = self.name.partition(":")
        start = f"{name}_{self.version.replace(':', '%3a')}_{architecture}"
        # Of the system's own architecture it comes first: `all`, `amd64`, `i386`.
        names = (name for name in apt.system.files.names(folder) if name.startswith(start))
        return next((f"{folder}/{name}" for name in names if name.endswith(".deb")), "")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is noted of an update. `phase`: empty where there is none; `driver`: that is kept; `kernels`: that had its
    modules; `left`: what was noted of it; `loaded`: the version that was; `worked`: it answered; `new`: the
    version that was taken back; `wanted`: names of packages that stay once the new one was seen at work.
    """

    phase: Phase = ""
    driver: Module = field(default_factory=Module)
    kernels: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()
    left: Left | None = None
    loaded: str = ""
    worked: bool = False
    new: str = ""
    wanted: tuple[str, ...] = ()


_NOTE = Note(f"{UPDATE}/kept", Kept)


def noted(system: System) -> Kept:
    """What is noted of an update of the driver.

    :raises OSError: that can't be read.
    """
    return _NOTE.read(system.files) or Kept()


class Update:
    """The update of one system's driver.

    :param apt: of the driver's layer.
    """

    def __init__(self, apt: Apt, target: Target) -> None:
        self._apt = apt
        self._system = apt.system
        self._files = apt.system.files
        self._target = target

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

    # Keeping.

    def lost(self, apt: AskedApt) -> list[str]:
        """What can't be had any more of the driver that is there, without which there is no way back; empty: all can.

        :param apt: that is asked.
        """
        if version := driver.run_version(self._system):
            return [f"NVIDIA's-installer={version}"]
        family = self._family(set())
        offered = apt.offered(*(package.name for package in family))
        cached = (package for package in family if package.version not in offered[package.name])
        return [package.word for package in cached if not package.file_in(apt, _CACHE)]

    def keep(self, wanted: str) -> None:
        """Keeps what is there, unless there is no way back: a distribution's archive has one version at a time, and its
        updates would be refused for ever.

        :param wanted: the driver that is to come, for the log.
        :raises Failure: it can't be kept now.
        :raises OSError: the disk doesn't take it.
        """
        self.close()
        apt, files, system = self._apt, self._files, self._system
        version = driver.library_version(system)
        if lost := self.lost(apt):
            system.log.say(
                f"note: the driver {version} can't be put back: no repository and no cache has {' '.join(lost)}"
            )
            return
        system.log.say(f"keeping the driver {version}, in case {wanted} can't be had")
        family, fetched = self._family(apt.marked("manual")), []
        for package in family:
            if cached := package.file_in(apt, _CACHE):
                files.copy(cached, f"{UPDATE}/{cached.rpartition('/')[2]}")
            else:
                fetched.append(package.word)
        files.need_folder(UPDATE)
        done = apt.get("download", *fetched, folder=UPDATE) if fetched else Done(0, b"")
        if done.status != 0:
            what = f"the packages of the driver that is there, kept: {' '.join(fetched)}"
            apt.explain(done, what, "an update that fails is undone with them; nothing was changed")
        releases = driver.kernels_of(system, self._target) if self._target != "lxc" else []
        modules = {release: driver.module(system, release) for release in releases}
        kernels = tuple(release for release, module in modules.items() if module.version == version)
        loaded = nvidia.loaded(system).version
        files.flush_all()  # before it is noted that they are kept: apt doesn't do it
        self.note(
            phase="trying",
            driver=modules[kernels[0]] if kernels else Module(version),
            kernels=kernels,
            packages=family,
            left=driver.NOTE.read(files),
            loaded=loaded,
            worked=loaded == version and apt.do("nvidia-smi", "-L", seconds=60).status == 0,
        )

    def _family(self, manual: set[str]) -> tuple[Package, ...]:
        whole = self._apt.installed().whole
        return tuple(
            Package(name, version, "manual" if name in manual else "auto")
            for name, version in sorted(whole.items())
            if FAMILY.search(name)
        )

    # Putting back.

    def back(self, new: str = "") -> str:
        """Puts back what was kept, from wherever an update has come to, and ends it.

        :param new: the version that is taken back, after a boot.
        :returns: in words, what there is then.
        :raises Failure: it can't be put back; the next run goes on with it.
        """
        old = self.kept.driver.version
        try:
            self.note(phase="back", new=new)
            restored = self._restore()
            if new:
                self._files.note(VERSION_GIVEN_UP, f"{new}\n".encode())
            self.close()
        except (Failure, OSError) as error:
            self._files.undo()
            failure = self._system.failure_of(error)
            failed = f"the update to {new} doesn't work, and " if new else ""
            raise failure.but(
                why=f"{failed}the driver {old} could not be put back: {failure.why}",
                next=f"{failure.next}; `pulumi up --refresh` tries first of all to put {old} back",
            ) from error
        return restored

    def _restore(self) -> str:
        apt, system, files, kept = self._apt, self._system, self._files, self.kept
        system.log.say(f"putting the driver {kept.driver.version} back")
        apt.repair()
        driver_installer.remove(apt)
        self._put_packages_back()
        pins = [f"Package: {one.name}\nPin: version {one.version}\nPin-Priority: 1001\n" for one in kept.packages]
        files.put(apt.layer, PINS, 0o644, "\n".join(pins).encode())
        files.finish()
        kernels = self._kernels_to_build()
        for release in kernels:
            driver_modules.build(apt, kept.driver, release)
        driver_modules.drop_blacklist(apt)
        driver_modules.renew_initramfs(apt, self._target)
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
        return f"its libraries{modules}{self._bring_into_use(version)}"

    def _kernels_to_build(self) -> list[str]:
        """Those that had its modules and are there still, and the running one, which may have come since."""
        noted, running = self.kept.kernels, kernel.running(self._system)
        there = driver.kernels_of(self._system, self._target) if noted else []
        return [version for version in there if version in noted or version == running]

    def _put_packages_back(self) -> None:
        apt, kept = self._apt, self.kept.packages
        there = apt.installed()
        came = [name for name in there.present if FAMILY.search(name) and name not in {one.name for one in kept}]
        gone = [f"{name}-" for name in came if not apt.of_others([name])]
        missing = [package for package in kept if there.whole.get(package.name) != package.version]
        kept_files = [package.file_in(apt, UPDATE) for package in missing]
        if not all(kept_files):
            raise Failure(
                f"the packages of the driver that was kept in {UPDATE}",
                f"not all of them are there any more: {' '.join(package.word for package in missing)}",
                "the driver from before is put back with them",
                "run `pulumi up --refresh`: it goes on with the driver that the settings name",
            )
        if missing or gone:
            if self._target == "host":
                self._files.set_pending(driver_modules.INITRAMFS)
            # In one go with the removal of those that came instead: packages of two versions have files of the same
            # names.
            words = (*map(self._files.name, kept_files), *gone)
            apt.install(words, needed=[package.word for package in missing], may_remove=FAMILY)
        for mark in ("auto", "manual"):
            apt.mark(mark, [package.name for package in kept if package.mark == mark])
        apt.settle()

    def _bring_into_use(self, version: str) -> str:
        """As far as that can be done now; returns what is so, in words. What was loaded before the update stays."""
        apt, system, kept = self._apt, self._system, self.kept
        loaded, start_daemon = nvidia.loaded(system).version, None
        if self._target == "lxc":
            return f"; the host's driver is {loaded}, with which they don't work" if loaded not in ("", version) else ""
        if loaded not in ("", version):
            start_daemon = driver_modules.unload(apt) if loaded != kept.loaded else None
            if start_daemon is None:
                return f"; {loaded} is still loaded, and {version} is loaded at the next boot"
        if not nvidia.loaded(system).version and (loaded or kept.loaded):
            driver_modules.load_module(apt, version)
        if start_daemon:
            start_daemon()
        if nvidia.loaded(system).version != version or not kept.worked:
            return ""
        done = apt.do("nvidia-smi", "-L", seconds=60)
        if done.status != 0:
            apt.explain(done, f"the driver {version}, put back, answering nvidia-smi", "it did before the update")
        return "; nvidia-smi answers"
