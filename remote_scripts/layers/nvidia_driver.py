"""NVIDIA's driver of one branch or version: from packages or NVIDIA's installer; modules and libraries, in a container
the libraries alone.

Changes packages, or what the installer puts there; DKMS's modules; a blacklist for nouveau where the packages bring
none; but in a container a service that keeps the cards initialised. The module is loaded where nothing is in its way.
What replaces a driver is tried (shared/driver_update.py): what was there is kept, and put back where the new one can't
be had. Libraries that are only added keep its version.

`revert` undoes exactly these, and what was replaced comes back. A driver that was there and is what is wanted is left
as it is.
"""

from __future__ import annotations

import fnmatch
import re
from typing import Literal, NoReturn

from remote_scripts.both.nvidia_driver import Answer, Installation, Wanted, lacking_headers
from remote_scripts.both.nvidia_repository import Wanted as Repositories
from remote_scripts.layers.nvidia_repository import looking
from remote_scripts.shared import boot_service, driver, driver_installer, driver_modules, nvidia
from remote_scripts.shared.driver import FAMILY, LAYER, Source
from remote_scripts.shared.driver_installer import DOWNLOADS
from remote_scripts.shared.driver_update import GIVEN_UP, VERSION_GIVEN_UP, Update
from remote_scripts.shared.handover import need_rest
from remote_scripts.shared.nvidia import Module
from remote_scripts.shared.packages import Packages, Reverted, announced
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes

_HEADERS = re.compile(rf"(?:{'|'.join(driver.HEADERS)})([0-9].*)")
_OF_THE_KERNEL = re.compile(r"dkms|^linux-(image|headers|modules|objects)|^nvidia-kernel-(source|open|support)")
_VERSIONED = re.compile(r"[0-9]{3}\.[0-9]+")
# What has the driver's version wherever it comes from.
_OF_ONE_VERSION = re.compile(r"(libnvidia-compute|libnvidia-ml1|libcuda1|nvidia-utils|nvidia(-kernel)?(-open)?-dkms)\b")
_NUMBER = re.compile(r"(?:\d+:)?(\d{3}\.[\d.]*\d)")
#: Cards stay initialised while nobody uses them: programs and containers come and go, and each first one would wait for
#: seconds. NVIDIA's own daemon doesn't do that as Ubuntu packages it (--no-persistence-mode). In a container it is the
#: host's business.
PERSISTENCE = boot_service.Service(
    name="homelab-nvidia-persistence",
    layer=LAYER,
    without="each program would initialise the cards again",
    unit="""\
# Written by homelab, which takes it away again (pulumi destroy).
[Unit]
Description=Keep NVIDIA's cards initialised while nobody uses them
After=systemd-modules-load.service homelab-nvidia-nodes.service
ConditionPathExists=/proc/driver/nvidia/version

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/nvidia-smi -pm 1

[Install]
WantedBy=multi-user.target
""",
)


@changes
def read(system: System, wanted: Wanted) -> Installation:
    """How it would come, as far as apt can say that; nothing is changed.

    :raises Failure: the driver can't be had.
    """
    work = _Work(system, wanted, FAMILY)
    with looking(work.packages, wanted.repositories or Repositories(software=wanted.software)):
        return Installation("", work.choose_source(), "no", "")


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Brings the driver in.

    :raises Failure: it can't be had; what was there is back then, or the next run goes on with that.
    """
    return _Work(system, wanted, FAMILY).apply()


@changes
def revert(system: System, wanted: Wanted) -> Reverted:
    """Takes out what this layer put there.

    :raises Failure: apt or the installer can't do it.
    """
    return _Work(system, wanted, None).revert()


class _Work:
    def __init__(self, system: System, wanted: Wanted, may_remove: re.Pattern[str] | None) -> None:
        self._system = system
        self._files = system.files
        self._wanted = wanted
        self.packages = Packages(system, wanted.software, LAYER, f"NVIDIA driver {wanted.driver}", may_remove)
        self._update = Update(self.packages, wanted.target)
        #: Of the very version that is there, where that can be had so.
        self._names = wanted.packages
        #: Where it comes from, once that is chosen.
        self._source: Literal["packages", "run"] | None = None
        self._left = driver.Left()

    def apply(self) -> Answer:
        update = self._update
        is_first = not driver.library_version(self._system) and not self._half_configured()
        need_rest(self._system)
        self._resume()
        self._left = driver.left(self._system)
        phase = update.kept.phase
        # What is half configured is repaired first; then it is judged what is there.
        is_there = phase != "trying" and (self._is_installed() or (self.packages.repair() and self._is_installed()))
        if not is_there:
            self._stay_at_version()
            if phase != "trying":  # else what can't be had leads back to what was kept
                self._source = self.choose_source()
            if not phase and self._is_worth_keeping():
                self._begin_update()
        install = self._install_first if is_first else self._install
        brought = self._try(is_there) if update.kept.phase else install(is_there)
        self._files.remove(VERSION_GIVEN_UP)
        self.packages.note_step()
        self._files.finish()
        return Answer(**vars(brought), packages=tuple(self.packages.of_layer()), changed=self._files.changed)

    def revert(self) -> Reverted:
        system, files, packages = self._system, self._files, self.packages
        if packages.is_anothers():
            return Reverted((), False)
        left = driver.left(system)
        boot_service.drop(system, PERSISTENCE)
        driver_installer.give_back(packages)
        if left.target == "host":
            files.set_pending(driver_modules.INITRAMFS)
        packages.remove()
        self._update.let_go()
        driver_modules.drop_blacklist(packages)
        driver_modules.renew_initramfs(packages, left.target or self._wanted.target)
        files.remove_tree(DOWNLOADS)
        files.remove(driver.NOTE.path)
        self._update.close()
        files.remove(VERSION_GIVEN_UP)
        return packages.reverted()

    # What is there.

    def _is_installed(self) -> bool:
        """Whether the wanted driver is installed, with its libraries, whoever did that."""
        wanted = self._wanted
        version = driver.library_version(self._system)
        if not self._is_wanted(version) or driver.lacking(self._system, wanted.libraries):
            return False
        if wanted.flavour is None:
            return True
        modules = (driver.module(self._system, kernel) for kernel in driver.kernels_of(self._system, wanted.target))
        return all(module == Module(version, wanted.flavour) for module in modules)

    def _is_wanted(self, version: str) -> bool:
        """The same without modules and further libraries."""
        is_whole = (
            self._files.is_file(driver.NVIDIA_SMI)
            and not self._half_configured()
            and driver_installer.is_whole(self._system)
        )
        return (
            driver.fits(version, self._wanted.driver)
            and is_whole
            and driver.is_source_wanted(self._left, self._wanted.source)
        )

    def _half_configured(self) -> list[str]:
        """Packages of the driver's that are there and not wholly installed."""
        installed = self.packages.installed()
        return sorted(name for name in installed.present if name not in installed.whole and FAMILY.search(name))

    def _stay_at_version(self) -> None:
        """Packages of the very version that is there, where that fits and all of them can be had so: the repositories
        may have a newer one of its branch by now, and who asks for libraries asks for no update.
        """
        there, whole = driver.library_version(self._system), self.packages.installed().whole
        bare = [name.partition("=")[0] for name in self._wanted.packages]
        # A run that was cut short may have left some of another version.
        version = next((whole[name] for name in bare if there and there in whole.get(name, "")), "")
        names = tuple(f"{name}={version}" for name in bare)
        can_be_had = all(self.packages.is_whole(name) or self._is_offered(name) for name in names)
        if version and can_be_had and driver.fits(there, self._wanted.driver):
            self._names = names

    def _is_offered(self, package: str) -> bool:
        name, _, pattern = package.partition("=")
        return any(fnmatch.fnmatchcase(version, pattern) for version in self.packages.offered(name)[name])

    def _is_worth_keeping(self) -> bool:
        """Whether a driver is there, whole, that is to be replaced by another, or by itself with more libraries. That a
        kernel lacks the module of the wanted version replaces nothing.
        """
        system, wanted = self._system, self._wanted
        version = driver.library_version(system)
        if not version or not self._files.is_file(driver.NVIDIA_SMI) or self._half_configured():
            return False
        is_as_wanted = self._is_wanted(version) and not driver.lacking(system, wanted.libraries)
        if not wanted.flavour:
            return not is_as_wanted
        modules = (driver.module(system, kernel) for kernel in driver.kernels_of(system, wanted.target))
        built = [module for module in modules if module.version == version]
        return bool(built) and not (is_as_wanted and built[0].flavour == wanted.flavour)

    # Bringing it in.

    def _install_first(self, is_there: bool) -> Installation:
        """Where nothing of a driver was: what came and can't be configured, as its modules don't build, goes again, or
        apt would do nothing else.
        """
        try:
            return self._install(is_there)
        except Failure as error:
            if not self._half_configured():
                raise
            self.packages.purge(self._came(), "what can't be configured: ", "apt does nothing else while it is there")
            self.packages.settle()
            raise error.but(next=f"{error.next} (What had come of the driver is gone again.)") from error

    def _install(self, is_there: bool) -> Installation:
        wanted, packages = self._wanted, self.packages
        self._update.let_go()
        source: Source
        if is_there:
            version = driver.library_version(self._system)
            source = self._installed_source()
            self._system.log.say(f"the driver {version} is there as it is wanted")
            packages.settle()
        else:
            source = self._source or self.choose_source()
            self._install_prerequisites(self._wanted.prerequisites)
            self._files.finish()  # What is in place by now is of use to the next run, should this one fail.
            if source == "packages":
                self._install_packages()
            else:
                self._install_from_installer()
            version = driver.library_version(self._system)
        if source == "packages":
            self._drop_replaced()
        self._drop_unwanted()
        if wanted.flavour is None:
            self._need_host_version(version)
            self._note_driver(version, source)
            return Installation(version, source, "no-module", "a container has no kernel of its own")
        module = Module(version, wanted.flavour)
        for kernel in driver.kernels_of(self._system, wanted.target):
            driver_modules.build(packages, module, kernel)
        driver_modules.renew_initramfs(packages, wanted.target)
        self._note_driver(version, source)
        boot_service.install(self._system, PERSISTENCE)
        reboot, why = driver_modules.load(packages, module)
        self._start_persistence(version)
        return Installation(version, source, reboot, why)

    def _installed_source(self) -> Source:
        """As noted; a run that was cut short may have noted nothing of what it had installed."""
        noted = self._left.source
        if noted == "run" or (not noted and self._files.exists(driver_installer.INSTALLED.path)):
            return "run"
        return "packages" if noted == "packages" or (not noted and self._came()) else "found"

    def _note_driver(self, version: str, source: str) -> None:
        left = driver.Left(version, source, self._wanted.target, self._wanted.flavour or "")
        driver.NOTE.write(self._files, left)

    def _need_host_version(self, version: str) -> None:
        loaded = nvidia.loaded(self._system).version
        if loaded and loaded != version:
            raise Failure(
                f"the libraries of the host's driver, {loaded}",
                f"{version} is installed",
                "they must be of one version, to the last digit",
                "run `pulumi up --refresh`: the host's version is read then",
            )

    def _install_prerequisites(self, names: tuple[str, ...]) -> None:
        """Without headers that are there, which a user may have put there in another way.

        :raises Failure: no repository has a kernel's headers; or apt can't do it.
        """
        headers = {name: match[1] for name in names if (match := _HEADERS.fullmatch(name))}
        missing = [
            name
            for name in names
            if not self.packages.is_whole(name)
            and not (name in headers and driver.has_headers(self._system, headers[name]))
        ]
        offered = self.packages.offered(*headers)
        if lacking := [name for name in missing if name in headers and not offered[name]]:
            raise lacking_headers(self._wanted.software.context.name, lacking, self._wanted.target)
        self.packages.install(missing)

    def choose_source(self) -> Literal["packages", "run"]:
        """Where it comes from, by what apt would do.

        :raises Failure: its packages lead to another driver, and the installer isn't to be taken.
        """
        wanted = self._wanted
        if wanted.source == "run":
            return self._need_installer()
        missing = [name for name in self._names if not self._is_offered(name)]
        against = f"{missing[0]} isn't offered" if missing and wanted.source == "either" else self._leads_elsewhere()
        if not against:
            return "packages"
        if wanted.source == "packages":
            raise Failure(
                f"NVIDIA's driver {wanted.driver}, from {' '.join(self._names)}",
                against,
                "in a distribution's own archive, the packages of a branch that has ended lead to those of the next "
                "one; nothing was changed",
                "set nvidia.driver to a branch that is maintained, or nvidia.source: run",
            )
        self._system.log.say(f"note: {against}: NVIDIA's installer is used")
        return self._need_installer()

    def _need_installer(self) -> Literal["run"]:
        """:raises Failure: none is known."""
        if not (self._wanted.run and self._wanted.run.sha256):
            raise Failure(*(self._wanted.unpinned or ("NVIDIA's installer", "none is named", "it is the only way", "")))
        return "run"

    def _leads_elsewhere(self) -> str:
        """What speaks against the packages, as apt would install them; empty: nothing.

        :raises Failure: apt can't install them.
        """
        plan = self.packages.simulated("install", "--no-install-recommends", "--allow-downgrades", *self._names)
        # The pin by which an update was given up goes before this one is installed.
        if plan.status != 0 and not self._files.exists(GIVEN_UP):
            self.packages.explain_install(plan, f"to install {' '.join(self._names)}")
        coming = [change for change in announced(plan) if change.new != "-"] if plan.status == 0 else []
        numbers = {_OF_ONE_VERSION.match(change.name) and _NUMBER.match(change.new) for change in coming}
        wanted = self._wanted
        if others := sorted({number[1] for number in numbers if number and not driver.fits(number[1], wanted.driver)}):
            return f"apt would bring {' and '.join(others)} with them"
        modules = [change.name for change in coming if _OF_THE_KERNEL.search(change.name)]
        is_against = modules and wanted.target == "lxc" and wanted.source == "either"
        return f"they would bring modules, which have no place in a container ({modules[0]})" if is_against else ""

    def _install_packages(self) -> None:
        packages = self.packages
        driver_installer.remove(packages)
        # The packages renew the newest kernel's at most.
        if self._wanted.target == "host" or driver.cards(self._system).holder:
            self._files.set_pending(driver_modules.INITRAMFS)
        packages.install(self._names, recommends=self._wanted.recommends)

    def _install_from_installer(self) -> None:
        wanted, packages = self._wanted, self.packages
        run = wanted.run
        assert run is not None  # as of `choose_source`
        self._install_prerequisites(wanted.run_prerequisites)
        path = run.file(DOWNLOADS)
        driver_installer.fetch(packages, run, path)
        packages.make_way(
            [name for name in packages.installed().present if FAMILY.search(name)],
            "the driver's packages",
            "NVIDIA's installer",
        )
        if driver.run_version(self._system) != run.version:
            driver_installer.remove(packages)
        driver_installer.run(packages, run, path, wanted.target)

    def _drop_replaced(self) -> None:
        """Packages of the driver that we added for another version, and that nothing needs any more; and what was left
        of those that made way. A run that was cut short may have left them, too.
        """
        packages = self.packages
        version, installed = driver.library_version(self._system), packages.installed()
        other = {name for name, there in installed.present.items() if _VERSIONED.search(there) and version not in there}
        old = [name for name in self._came() if name in installed.left or name in other]
        if packages.purge(old, "what was of another version: ", "they belong to a driver that was replaced"):
            packages.settle()

    def _drop_unwanted(self) -> None:
        """Packages of what the driver was for, and isn't any more, where we added them."""
        present = self.packages.installed().present
        old = [name for name in self._came() if name in self._wanted.unwanted and name in present]
        if self.packages.purge(old, "what the driver is no longer for: ", "nvidia.capabilities leaves them out"):
            self.packages.settle()

    def _came(self) -> list[str]:
        """The driver's packages that we added."""
        records = self.packages.records()
        return [name for name, record in records.items() if record.before == "-" and FAMILY.search(name)]

    def _start_persistence(self, version: str) -> None:
        """Where the module that is loaded is of the version that is installed."""
        if nvidia.loaded(self._system).version == version:
            done = self._system.run.do("systemctl", "start", f"{PERSISTENCE.name}.service")
            if done.status != 0:
                self._system.log.say(f"note: {PERSISTENCE.name}.service doesn't start now: {done.text}")

    # The update.

    def _resume(self) -> None:
        """What an earlier run has left of an update."""
        update = self._update
        kept = update.kept
        if kept.phase in ("", "keeping"):
            update.close()
            return
        if kept.phase != "back" and (kept.lost or not self._is_kept_wanted()):
            return
        self._system.log.say(f"an update of the driver was left half-way: putting {kept.driver.version} back")
        update.note(phase="back")
        try:
            update.restore()
        except (Failure, OSError) as error:
            # It may be that the new one works by now: going on is better than being held here for ever.
            failure = self._undone(error)
            self._system.log.say(f"note: the driver from before could not be put back: {failure.found}")
            update.note(phase="trying")
        else:
            update.close()

    def _is_kept_wanted(self) -> bool:
        """Whether what was kept is what is wanted now."""
        wanted, kept = self._wanted, self._update.kept
        return (
            not {*wanted.libraries} & {*kept.lacking}
            and driver.fits(kept.driver.version, wanted.driver)
            and (wanted.flavour is None or kept.driver.flavour == wanted.flavour)
            and driver.is_source_wanted(kept.left or driver.Left(), wanted.source)
        )

    def _begin_update(self) -> None:
        try:
            self._update.keep(self._wanted.driver, self._wanted.libraries)
        except (Failure, OSError) as error:
            failure = self._undone(error)
            self._update.close()
            raise failure.but(why=f"{failure.why}; nothing was changed") from error

    def _try(self, is_there: bool) -> Installation:
        """With what was kept: the new driver is brought in, or the old one is put back and the run ends with the
        reason.
        """
        update, old = self._update, self._update.kept.driver.version
        if update.kept.phase != "tried":
            update.note(phase="trying")
        try:
            brought = self._install(is_there)
            is_proven = self._verify(brought)
        except (Failure, OSError) as error:
            self._give_up(old, self._undone(error))
        if is_proven:
            update.close()
        else:
            update.note(phase="tried")
        return brought

    def _verify(self, brought: Installation) -> bool:
        """The new one at work, where it is loaded and the old one was; returns whether nothing has to be seen after a
        boot.
        """
        if nvidia.loaded(self._system).version != brought.version or brought.reboot == "yes":
            return False
        if self._update.kept.worked and not self._update.serves_cards():
            self.packages.explain(
                self._update.answer,
                f"NVIDIA's driver {brought.version}, answering nvidia-smi",
                f"the one before it, {self._update.kept.driver.version}, did",
            )
        return True

    def _give_up(self, old: str, reason: Failure) -> NoReturn:
        """Ends the run with why the new one could not be had, and what there is instead."""
        update = self._update
        self._system.log.say(f"note: the update of the driver from {old} failed: {reason.wanted}")
        if lost := " ".join(update.kept.lost):
            update.close()
            next = f"{reason.next} (The driver {old} can't be put back: no repository and no cache had {lost}.)"
            raise reason.but(next=next)
        update.note(phase="back")
        self._system.work.extend(self._wanted.software.install_seconds)
        try:
            restored = update.restore()
        except (Failure, OSError) as error:
            failure = self._undone(error)
            raise reason.but(
                why=f"{reason.why}; and the driver {old} could not be put back: {failure.wanted}; found: "
                f"{failure.found}",
                next=f"run `pulumi up` again when the cause is gone: it first goes on with putting {old} back. "
                f"{failure.next}. For the update: {reason.next}",
            ) from error
        update.close()
        raise reason.but(
            why=f"{reason.why}; the update is given up",
            next=f"the driver {old} is back: {restored}. For another try: {reason.next}",
        )

    def _undone(self, error: Failure | OSError) -> Failure:
        """What failed, its files put back."""
        self._files.undo()
        return self._system.failure_of(error)
