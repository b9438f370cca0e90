"""NVIDIA's driver, CUDA, the libraries beside it and the container toolkit on a host, in a VM or in a container: all of
it by one run of apt, and NVIDIA's installer where no repository has the driver.

`read` asks the system's own apt what it would do, with NVIDIA's repositories, and changes nothing. `apply` does that:
it adds repositories, each with a key whose fingerprint apt checks, and pins. It installs packages, with modules for
every kernel that must have them (in a container only the libraries), and a service that keeps the cards initialised. It
loads the module if nothing is in its way. If a new driver can't be brought in, the one before comes back by its name
(nvidia/replaced.py). A driver that is there and is what is wanted is left as it is, whoever installed it, and no server
is asked for it.

`revert` takes out what came; what others need by now stays, and is said. Where the user has a repository already, that
is used, and no second entry is written: apt refuses two with different keyrings.
"""

from __future__ import annotations

from typing import Literal, NoReturn

from remote_scripts.apt import sources
from remote_scripts.apt.packages import Reverted
from remote_scripts.both.nvidia_packages import Answer, Said, Try, Wanted, lacking_headers
from remote_scripts.both.symptoms import Flavour
from remote_scripts.notes.handover import need_rest
from remote_scripts.nvidia import driver, driver_installer, driver_modules, replaced
from remote_scripts.nvidia.choice import ENGINES, Choice, Way
from remote_scripts.nvidia.driver import ASKED, FAMILY, LAYER, PINS, Source
from remote_scripts.nvidia.driver_installer import DOWNLOADS
from remote_scripts.nvidia.nvidia import Module
from remote_scripts.nvidia.replaced import Replaced
from remote_scripts.tools import boot_service
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes

_PROFILE = "/etc/profile.d/homelab-cuda.sh"
_COMMENT = "# Written by homelab, which takes it away again (pulumi destroy)."
#: Cards stay initialised while nobody uses them: programs and containers come and go, and each first one would wait for
#: seconds. NVIDIA's own daemon doesn't do that as Ubuntu packages it (--no-persistence-mode). In a container it is the
#: host's business.
PERSISTENCE = boot_service.Service(
    name="homelab-nvidia-persistence",
    layer=LAYER,
    without="each program would initialise the cards again",
    unit="""\
[Unit]
Description=Keep NVIDIA's cards initialised while nobody uses them
After=systemd-modules-load.service homelab-nvidia-nodes.service
ConditionPathExists=/proc/driver/nvidia/version

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/nvidia-smi -pm 1
""",
)


def read(system: System, wanted: Wanted) -> Said:
    """What apt would do; nothing is changed.

    :raises Failure: a list can't be had.
    """
    work = _Work(system, wanted)
    there = driver.library_version(system)
    if (chosen := work.fulfilled()) is not None:
        return Said(chosen=chosen, version=there, was=there)
    with work.apt.aside() as apt:
        sources.add_aside(apt, wanted.repositories, wanted.files)
        return work.said(apt)[0]


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Brings it in.

    :raises Failure: it can't be had; what was there is back then, or the next run goes on with that.
    """
    return _Work(system, wanted).apply()


@changes
def revert(system: System, wanted: Wanted) -> Reverted:
    """Takes out what this layer put there.

    :raises Failure: apt or the installer can't do it.
    """
    work, files = _Work(system, wanted), system.files
    if work.apt.is_anothers():
        return Reverted((), False)
    kept = work.take_back()
    replaced.forget(files)
    files.remove_tree(DOWNLOADS)
    files.remove(driver.NOTE.path, ASKED)
    return work.apt.reverted(kept)


class _Work(Choice):
    # Bringing it in.

    def apply(self) -> Answer:
        wanted, files, apt = self._wanted, self._files, self.apt
        need_rest(self._system)
        is_first = not self._was and not self._half_configured()
        added = {*apt.records()}
        apt.repair()
        files.remove(ASKED)
        if self._is_somebodys_cuda():
            self._system.log.say(f"note: CUDA {wanted.cuda} is there, and not from packages: left as it is")
        try:
            number, found = self.fulfilled(), Way()
            if number is None or added:
                sources.put(apt, wanted.repositories, wanted.files, (PINS,))
            if number is None:
                number, found = self._choose()
            way = wanted.tries[number]
            files.finish()  # What is in place by now is of use to the next run, should this one fail.
            version, source = self._bring(way.flavour or "", found)
            is_first = False
            reboot, why = self._load(version, way)
        except (Failure, OSError) as error:
            self._give_up(error, added if is_first else None)
        sources.put_file(apt, PINS, "" if source == "run" else self._pins(way.driver))
        old = replaced.noted(files)
        replaced.forget(files)
        self.tidy(way)
        # A login finds its compiler; what that says is verified (homelab/nvidia/verification.py).
        path = f"PATH={wanted.nvcc.rpartition('/')[0]}${{PATH:+:$PATH}}"
        sources.put_file(apt, _PROFILE, f"{_COMMENT}\n{path}" if wanted.cuda else "")
        files.note(ASKED, f"{wanted.digest}\n".encode())
        apt.note_step()
        files.finish()
        return Answer(
            version=version,
            source=source,
            flavour=way.flavour,
            capabilities=way.capabilities,
            reboot=reboot,
            why=why,
            cuda=self._release() if wanted.cuda else "",
            toolkit=apt.installed().whole.get("nvidia-container-toolkit", ""),
            packages=tuple(apt.of_layer()),
            changed=files.changed,
            before=old.driver.version if old else "",
        )

    def take_back(self) -> list[str]:
        """Takes out what came; returns packages that others need by now.

        :raises Failure: apt or the installer can't do it.
        """
        files, target = self._files, self._wanted.target
        boot_service.serve(self._system, PERSISTENCE, needed=False)
        if self._source() == "run":
            driver_installer.remove(self.apt)
        if target == "host":
            files.set_pending(driver_modules.INITRAMFS)
        self.apt.repair()
        kept = self.tidy()
        driver_modules.drop_blacklist(self.apt)
        for path in files.of_layer(LAYER):
            files.drop(LAYER, path)
        driver_modules.renew_initramfs(self.apt, target)
        return kept

    def tidy(self, way: Try | None = None) -> list[str]:
        """As of `Apt.tidy`; without a way nothing is wanted. An engine that came has an owner's images and volumes by
        now: it stays until all is taken back. The specification that the toolkit's service has made means nothing
        without it.
        """
        wanted = self._wanted
        words = (*way.packages, *wanted.beside, *wanted.headers, *ENGINES) if way else ()
        has_engine = not ENGINES.keys().isdisjoint(self.apt.installed().present)
        names = {word.partition("=")[0] for word in words}
        kept = self.apt.tidy(names, recommends=wanted.recommends or has_engine)
        if not self._files.exists("/usr/bin/nvidia-ctk"):
            self._files.remove("/run/cdi/nvidia.yaml")
        return kept

    def _choose(self) -> tuple[int, Way]:
        """By what apt says now.

        :raises Failure: nothing can be had, or not without others' packages.
        """
        wanted, apt = self._wanted, self.apt
        apt.update(*(repository.url for repository in wanted.repositories))
        with apt.aside() as other:
            said, found = self.said(other)
        if said.lacking and wanted.target != "lxc":
            raise lacking_headers(self._name, said.lacking, wanted.target)
        drivers = ", ".join(dict.fromkeys(way.driver for way in wanted.tries))
        what = f"{self._name}: NVIDIA's driver {drivers}, with what is wanted beside it"
        if said.chosen is None:
            apt.explain_install("\n".join(said.against) or "no way to it is known", what)
        apt.need_own(said.removes, what)
        for reason in said.against:
            self._system.log.say(f"passed over: {reason}")
        if said.way_back is False:
            self._system.log.say(f"note: {self._was} can't be put back if {said.version} fails: no repository has it")
        elif said.way_back:
            replaced.note(apt)
        return said.chosen, found

    def _bring(self, flavour: Flavour | Literal[""], found: Way) -> tuple[str, Source]:
        """Packages, libraries, and modules for each kernel; returns the version, and whose it is."""
        system, files, wanted, apt = self._system, self._files, self._wanted, self.apt
        if found.words or found.run:
            sources.put_file(apt, PINS, found.pins)
            files.finish()
            needs_initramfs = wanted.target == "host" or (wanted.target == "vm" and driver.holder(system))
            if needs_initramfs and any(map(FAMILY.search, found.words)):
                files.set_pending(driver_modules.INITRAMFS)  # the packages renew the newest kernel's at most
            if found.run:
                driver_installer.fetch(apt, found.run)
            elif any(map(FAMILY.search, found.words)) and driver_installer.is_there(system):
                apt.fetch_packages(found.words, recommends=wanted.recommends)
                driver_installer.remove(apt)
            apt.install(found.words, recommends=wanted.recommends, may_remove=FAMILY)
            if found.run:
                if driver.run_version(system) != found.run.version:
                    driver_installer.remove(apt)
                driver_installer.run(apt, found.run, wanted.target)
        version = driver.library_version(system)
        for release in self._kernels():
            driver_modules.build(apt, Module(version, flavour), release)
        source = self._source()
        if source != "run":  # the packages have one of their own
            driver_modules.drop_blacklist(apt)
        driver_modules.renew_initramfs(apt, wanted.target)
        driver.NOTE.write(files, driver.Left(version, source, wanted.target, flavour))
        return version, source

    def _source(self) -> Source:
        """Whose driver is there. A run that was cut short may have noted nothing of what it had installed."""
        if self._files.exists(driver_installer.INSTALLED.path):
            return "run"
        is_own = any(record.before == "-" and FAMILY.search(name) for name, record in self.apt.records().items())
        return "packages" if is_own else "found"

    def _load(self, version: str, way: Try) -> tuple[Literal["yes", "no", "no-module"], str]:
        """Where that can be done now; returns whether a boot is needed, and why."""
        if self._wanted.target == "lxc":
            return "no-module", "a container has no kernel of its own"
        boot_service.serve(self._system, PERSISTENCE, needed=True)
        reboot, why = driver_modules.load(self.apt, Module(version, way.flavour or ""))
        if reboot == "no":
            done = self._system.run.do("systemctl", "start", f"{PERSISTENCE.name}.service")
            if done.status != 0:
                self._system.log.say(f"note: {PERSISTENCE.name}.service doesn't start now: {done.text}")
        return reboot, why

    # What fails.

    def _give_up(self, error: Failure | OSError, added: set[str] | None) -> NoReturn:
        """Ends the run with why it could not be had, and what there is instead.

        :param added: what the layer had added before this run, where that was to bring the first driver.
        """
        reason, old, now = self._undone(error), replaced.noted(self._files), ""
        self._system.work.extend(self._wanted.software.install_seconds)
        try:
            if old:
                now = f"The driver {self._put_back(old)} is back."
            elif added is not None and (self.apt.records().keys() - added or driver_installer.is_there(self._system)):
                self.apt.tidy(added) if added else self.take_back()
                now = "What had come is gone again, with its logs."
            elif self._was not in ("", driver.library_version(self._system)):
                now = f"The driver {self._was} can't be put back: no repository has it."
            self._files.finish()  # the run that fails takes back nothing of that
        except (Failure, OSError) as also:
            failed = self._undone(also)
            now = f"What was there before can't be put back: {failed.wanted}; found: {failed.found}; {failed.next}."
        raise reason.but(next=f"{reason.next} ({now})" if now else reason.next) from error

    def _put_back(self, old: Replaced) -> str:
        """The driver from before, by its packages' names; returns its version. Pins hold it: those of the settings
        would have an owner's own upgrade bring what has failed.

        :raises Failure: it can't be had; the next run tries the wanted one again.
        """
        apt, names = self.apt, {one.name for one in old.packages}
        self._system.log.say("putting back the driver from before")
        came = [name for name in apt.installed().present if FAMILY.search(name) and name not in names]
        gone = [f"{name}-" for name in came if not apt.of_others([name])]
        words = [f"{one.name}={one.version}" for one in old.packages]
        pins = [f"Package: {one.name}\nPin: version {one.version}\nPin-Priority: 1001\n" for one in old.packages]
        version, _ = self._bring(old.driver.flavour, Way("\n".join(pins), (*words, *gone)))
        for mark in ("auto", "manual"):
            apt.mark(mark, [one.name for one in old.packages if one.mark == mark])
        apt.settle()
        replaced.forget(self._files)
        return version

    def _undone(self, error: Failure | OSError) -> Failure:
        """What failed, its files put back."""
        self._files.undo()
        return self._system.failure_of(error)
