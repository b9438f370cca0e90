"""NVIDIA's driver, CUDA, the libraries beside it and the container toolkit on a host, in a VM or in a container: all of
it by one run of apt, and NVIDIA's installer where no repository has the driver.

`read` asks the system's own apt what it would do, with NVIDIA's repositories, and changes nothing. `apply` does that:
repositories, each with a key whose fingerprint apt looks at, and pins; packages; modules for every kernel that must
have them, in a container the libraries alone; a service that keeps the cards initialised. The module is loaded where
nothing is in its way. What replaces a driver is tried (nvidia/driver_update.py): what was there is kept, and put back
where the new one can't be had. A driver that is there and is what is wanted is left as it is, whoever installed it, and
no server is asked for it.

`revert` takes out what came; what others need by now stays, and is said. Where the user has a repository already, that
is used, and no second entry is written: apt refuses two with different keyrings.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from remote_scripts.boot import boot
from remote_scripts.both.nvidia_packages import Answer, Repository, Said, Try, Wanted, lacking_headers
from remote_scripts.notes.handover import need_rest
from remote_scripts.nvidia import driver, driver_installer, driver_modules, nvidia
from remote_scripts.nvidia.apt import Apt, Plan, Reverted
from remote_scripts.nvidia.driver import ASKED, FAMILY, LAYER, PINS, Source
from remote_scripts.nvidia.driver_installer import DOWNLOADS
from remote_scripts.nvidia.driver_update import VERSION_GIVEN_UP, Update
from remote_scripts.nvidia.engines import is_there
from remote_scripts.nvidia.nvidia import Module
from remote_scripts.nvidia.software import Installer
from remote_scripts.tools import boot_service
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes
from remote_scripts.tools.text import as_text

_KEY = "/run/homelab/key"
_PROFILE = "/etc/profile.d/homelab-cuda.sh"
# What the files of NVIDIA's installer take at the least.
_RUN_BYTES = 400_000_000
_OF_THE_KERNEL = re.compile(r"dkms|^linux-(image|headers|modules|objects)|^nvidia-kernel-(source|open|support)")
# Which lack their network, or their build, without what they recommend.
_ENGINES = {"docker.io": "docker", "podman": "podman"}
_KERNEL = re.compile(r"^(linux-(image|modules)-|(proxmox|pve)-kernel-|nvidia-fs)")
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


@dataclass(frozen=True)
class _Way:
    """How a try is carried out. `pins`: the driver's, for that; `words`: what apt is asked for; `plan`: what it would
    do; `version`: the driver's by then, empty: nothing is to be done; `against`: why it can't be, empty: it can; `run`:
    NVIDIA's installer, if it is to be run.
    """

    pins: str = ""
    words: tuple[str, ...] = ()
    plan: Plan = Plan()
    version: str = ""
    against: str = ""
    run: Installer | None = None


def read(system: System, wanted: Wanted) -> Said:
    """What apt would do; nothing is changed.

    :raises Failure: a list can't be had.
    """
    work = _Work(system, wanted)
    there = driver.library_version(system)
    if (chosen := work.fulfilled()) is not None:
        return Said(chosen=chosen, version=there, was=there, room=boot.free_on(system, "/usr"))
    with work.apt.aside() as apt:
        work.add_repositories(apt)
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
    work.update.close()
    files.remove_tree(DOWNLOADS)
    files.remove(driver.NOTE.path, ASKED, VERSION_GIVEN_UP)
    return work.apt.reverted(kept)


class _Work:
    def __init__(self, system: System, wanted: Wanted) -> None:
        self._system = system
        self._files = system.files
        self._wanted = wanted
        self.apt = Apt(system, wanted.software, LAYER, "NVIDIA's packages")
        self.update = Update(self.apt, wanted.target)
        self._left = driver.left(system)
        self._was = driver.library_version(system)
        self._name = wanted.software.context.name
        # What comes with kernels' headers: Debian's of a newer kernel bring that.
        self._with_headers = set[str]()
        beside = wanted.beside
        if self._is_somebodys_cuda():
            beside = tuple(word for word in beside if not word.startswith("cuda-"))
        self._beside = tuple(word for word in beside if not self._is_somebodys_engine(word))

    # What is there.

    def staying(self) -> int | None:
        """The number of the first try whose driver is there; None: none is."""
        return next((number for number, way in enumerate(self._wanted.tries) if self._fulfils(way)), None)

    def fulfilled(self) -> int | None:
        """The same, where all that is wanted beside it is there, too."""
        needed = (*self._beside, *(self._bare_kernels() if self._left.source in ("packages", "run") else ()))
        return self.staying() if all(map(self.apt.is_whole, needed)) else None

    def _fulfils(self, way: Try) -> bool:
        """Whether its driver is installed, with its libraries, whoever did that."""
        system, version = self._system, driver.library_version(self._system)
        is_kept = (
            driver.fits(version, way.driver)
            and self._files.is_file(driver.NVIDIA_SMI)
            and not self._half_configured()
            and driver_installer.is_whole(system)
            and not driver.lacking(system, self._wanted.libraries)
            and driver.is_source_wanted(self._left, "run" if way.run else "packages")
            and (self._left.source != "packages" or all(map(self.apt.is_whole, way.packages)))
        )
        modules = (driver.module(system, kernel) for kernel in self._kernels())
        return is_kept and (not way.flavour or all(module == Module(version, way.flavour) for module in modules))

    def _kernels(self) -> list[str]:
        wanted = self._wanted
        return [] if wanted.target == "lxc" else driver.kernels_of(self._system, wanted.target)

    def _bare_kernels(self) -> dict[str, str]:
        """Wanted packages of headers -> kernels that have none, from wherever."""
        names = {f"{prefix}{kernel}": kernel for kernel in self._kernels() for prefix in driver.HEADERS}
        bare = {name: kernel for name, kernel in names.items() if not driver.has_headers(self._system, kernel)}
        return {name: bare[name] for name in self._wanted.headers if name in bare}

    def _half_configured(self) -> bool:
        """Whether a package of the driver's is there, and not wholly installed."""
        there = self.apt.installed()
        return any(name not in there.whole for name in there.present if FAMILY.search(name))

    def _is_somebodys_cuda(self) -> bool:
        """NVIDIA's installer puts a toolkit to the same place as the packages do. Half of a package may be there after
        a kill.
        """
        wanted = self._wanted
        if not wanted.cuda or not self._files.is_file(wanted.nvcc):
            return False
        package = f"cuda-nvcc-{'-'.join(wanted.cuda.split('.')[:2])}"
        return package not in self.apt.installed().present and self._release()[0] == self._short

    def _is_somebodys_engine(self, package: str) -> bool:
        """Docker's own packages conflict with docker.io."""
        engine = _ENGINES.get(package, "")
        return bool(engine) and package not in self.apt.installed().present and is_there(self._system, engine)

    @property
    def _short(self) -> str:
        return ".".join(self._wanted.cuda.split(".")[:2])

    def _release(self) -> tuple[str, str]:
        """CUDA's release, as its compiler says it, and all that it says."""
        done = self._system.run.ask(self._files.name(self._wanted.nvcc), "--version")
        output = "\n".join(as_text(done.output + done.error).rstrip("\n").split("\n")[-3:])
        return (re.search(r"release ([0-9]+\.[0-9]+)", output) or ["", ""])[1], output

    # What apt would do.

    def add_repositories(self, apt: Apt) -> None:
        """The repositories, and further pins, for an apt aside; their lists are fetched.

        :raises Failure: one can't be had.
        """
        for file in self._wanted.files:
            if "/preferences.d/" in file.path:
                apt.pin(file.path.rpartition("/")[2], file.content)
        unverified = "ca-certificates" in self._wanted.prerequisites and not apt.is_whole("ca-certificates")
        add_repositories(apt, self._wanted.repositories, unverified=unverified)

    def said(self, apt: Apt) -> tuple[Said, _Way]:
        """What it would do, and how.

        :param apt: aside.
        """
        tries, against = self._wanted.tries, list[str]()
        there, staying = driver.library_version(self._system), self.staying()
        headers, lacking = self._headers(apt)
        self._with_headers = {*apt.simulate_install(headers).coming} if headers else set()
        beside = [self._resolved(apt, word) for word in (*self._beside, *headers) if not self.apt.is_whole(word)]
        room = boot.free_on(self._system, "/usr")
        said = Said(chosen=None, was=there, room=room, lacking=lacking if staying is None else ())
        for number, version in self._ways(there, staying):
            way = tries[number]
            stays = (number, version) == (staying, there)
            found = self._simulated(apt, way, version, beside, stays=stays)
            if not found.against:
                going = found.plan.going
                said = replace(
                    said,
                    chosen=number,
                    version=found.version,
                    comes=tuple(f"{name}={new}" for name, new in found.plan.coming.items()),
                    removes=tuple(self.apt.of_others(going, FAMILY)),
                    way_back=not self.update.lost(apt) if not stays and self._replaces(way, found.plan) else None,
                    needs=apt.bytes_of(found.plan) + (_RUN_BYTES if found.run else 0),
                )
                return replace(said, against=tuple(against)), found
            how = "NVIDIA's installer" if way.run else " ".join(way.packages)
            if not any(text.startswith(f"{version} ") and found.against in text for text in against):
                against.append(f"{version} ({how}): {found.against}")
        names = {way.packages[-1].partition("=")[0] for way in tries if way.packages and not way.run}
        matches = [_NUMBER.match(text) for texts in apt.offered(*sorted(names)).values() for text in texts]
        offered = dict.fromkeys(match[1] for match in matches if match)
        # What isn't offered at all stands against every way.
        against = apt.lacking([word for word in self._beside if not self.apt.is_whole(word)]) or against
        return replace(said, offered=tuple(offered), against=tuple(against)), _Way()

    def _ways(self, there: str, staying: int | None) -> Iterator[tuple[int, str]]:
        """Numbers of tries, and the versions that apt is to go to. What is there and fits isn't replaced by a newer
        release of its branch, if that has what is asked for.
        """
        if staying is not None:
            yield staying, there
        for number, way in enumerate(self._wanted.tries):
            for version in dict.fromkeys((there if driver.fits(there, way.driver) else way.driver, way.driver)):
                if number != staying or version != there:
                    yield number, version

    def _replaces(self, way: Try, plan: Plan) -> bool:
        """Whether a driver is there, and is replaced by another one; libraries that are added replace nothing."""
        if not driver.library_version(self._system) or self._half_configured():
            return False
        if way.run or driver.run_version(self._system):
            return way.run is None or driver_installer.INSTALLED.read(self._files) != way.run
        return any(change.old != "-" and FAMILY.search(change.name) for change in plan.changes)

    def _pins(self, version: str) -> str:
        """apt goes to this version and no other, also to an older one: above 1000 it does."""
        pattern = f"{version}*" if "." in version else f"{version}.*"
        return f"Package: {' '.join(self._wanted.pinned)}\nPin: version {pattern}\nPin-Priority: 1001\n"

    def _simulated(self, apt: Apt, way: Try, version: str, beside: Sequence[str], *, stays: bool) -> _Way:
        """:param stays: the driver is there, and nothing is to change of it."""
        wanted, there = self._wanted, driver.library_version(self._system)
        of_run = way.run is not None or (stays and driver.run_version(self._system) != "")
        pins = "" if of_run else self._pins(version)
        apt.pin(PINS.rpartition("/")[2], pins)
        own = [] if stays else [self._resolved(apt, word) for word in way.packages]
        # What an installer takes the place of makes way.
        present = self.apt.installed().present
        gone = [f"{name}-" for name in present if way.run and not stays and FAMILY.search(name)]
        asked = (*own, *beside)
        plan = apt.simulate_install((*asked, *gone), recommends=wanted.recommends)
        coming, names = plan.coming, [word.partition("=")[0] for word in asked]
        words = [f"{name}={coming[name]}" for name in names if name in coming]
        words += [name for name in names if name not in coming and not self.apt.is_whole(name)]
        found = {
            match[1] for name, new in coming.items() if _OF_ONE_VERSION.match(name) and (match := _NUMBER.match(new))
        }
        by_then = there if stays else way.run.version if way.run else max(found, default=there)
        against = plan.why
        if others := sorted(number for number in found if of_run or not driver.fits(number, way.driver)):
            against = f"apt would bring {' and '.join(others)}"
        elif wanted.target == "lxc" and (modules := [name for name in coming if _OF_THE_KERNEL.search(name)]):
            against = f"modules would come, which have no place in a container: {' '.join(modules)}"
        elif bare := [name for name in {*coming} - self._with_headers if _KERNEL.search(name)]:
            against = f"apt would also bring {' '.join(bare)}"
        elif not against and not driver.fits(by_then, way.driver):  # also where nothing would change
            against = f"apt has no {way.driver}, and leaves {by_then or 'none'}"
        return _Way(pins, (*words, *gone), plan, by_then, against, None if stays else way.run)

    def _resolved(self, apt: Apt, word: str) -> str:
        """NAME=VERSION, of what is there or else the newest that is offered, for a NAME=PATTERN: apt takes no pattern
        that begins with a star.
        """
        name, has_pattern, pattern = word.partition("=")
        if not has_pattern:
            return word
        versions = [self.apt.installed().whole.get(name, ""), *apt.offered(name)[name]]
        return f"{name}={next((version for version in versions if fnmatch.fnmatchcase(version, pattern)), pattern)}"

    def _headers(self, apt: Apt) -> tuple[list[str], tuple[str, ...]]:
        """The packages of headers that are to come, and the kernels that have none and get none. What follows headers,
        and isn't offered, isn't needed; nor is anything for a driver of others that stays.
        """
        if self._left.source not in ("packages", "run") and self.staying() is not None:
            return [], ()
        bare, kernels = self._bare_kernels(), tuple(self._kernels())
        names = [name for name in self._wanted.headers if name in bare or not name.endswith(kernels)]
        offered = apt.offered(*names)
        lacking = [kernel for name, kernel in bare.items() if not offered[name] and not self.apt.is_whole(name)]
        return [name for name in names if offered[name] or "headers" not in name], tuple(lacking)

    # Bringing it in.

    def apply(self) -> Answer:
        wanted, files, apt, update = self._wanted, self._files, self.apt, self.update
        need_rest(self._system)
        is_first = not driver.library_version(self._system) and not self._half_configured()
        before = {*apt.records()}
        apt.repair()
        self._resume()
        files.remove(ASKED)
        if self._is_somebodys_cuda():
            self._system.log.say(f"note: CUDA {wanted.cuda} is there, and not from packages: left as it is")
        try:
            number, found = self.fulfilled(), _Way()
            if number is None or before:
                self._put_repositories()
            if number is None:
                number, found = self._choose()
            way = wanted.tries[number]
            files.finish()  # What is in place by now is of use to the next run, should this one fail.
            version, source = self._bring(way, found)
            is_first = False
            reboot, why = self._load(version, way)
        except (Failure, OSError) as error:
            self._give_up(error, before if is_first else None)
        self._put(PINS, "" if source == "run" else self._pins(way.driver))
        if update.kept.phase and reboot == "yes":
            update.note(phase="tried", wanted=self._names(way))
        else:
            update.close()
            self.tidy(self._names(way))
        self._configure_cuda()
        files.remove(VERSION_GIVEN_UP)
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
            cuda=self._release()[0] if wanted.cuda else "",
            toolkit=apt.installed().whole.get("nvidia-container-toolkit", ""),
            packages=tuple(apt.of_layer()),
            changed=files.changed,
        )

    def take_back(self) -> list[str]:
        """Takes out what came; returns packages that others need by now.

        :raises Failure: apt or the installer can't do it.
        """
        files, left = self._files, driver.left(self._system)
        boot_service.drop(self._system, PERSISTENCE)
        driver_installer.give_back(self.apt)
        if left.target == "host":
            files.set_pending(driver_modules.INITRAMFS)
        self.apt.repair()
        kept = self.tidy()
        driver_modules.drop_blacklist(self.apt)
        for path in files.of_layer(LAYER):
            files.drop(LAYER, path)
        driver_modules.renew_initramfs(self.apt, left.target or self._wanted.target)
        return kept

    def _names(self, way: Try) -> tuple[str, ...]:
        """Of all that is wanted by hand. An engine that came has an owner's images and volumes by now: it stays until
        all is taken back.
        """
        wanted = self._wanted
        words = (*way.packages, *wanted.beside, *wanted.headers, *wanted.prerequisites, *_ENGINES)
        return tuple(word.partition("=")[0] for word in words)

    def tidy(self, wanted: Sequence[str] = ()) -> list[str]:
        """As of `Apt.tidy`; the specification that the toolkit's service has made means nothing without it."""
        has_engine = not _ENGINES.keys().isdisjoint(self.apt.installed().present)
        kept = self.apt.tidy(wanted, recommends=self._wanted.recommends or has_engine)
        if not self._files.exists("/usr/bin/nvidia-ctk"):
            self._files.remove("/run/cdi/nvidia.yaml")
        return kept

    def _put(self, path: str, content: str) -> None:
        if content:
            self._files.put(LAYER, path, 0o644, f"{content.rstrip(chr(10))}\n".encode())
        else:
            self._files.drop(LAYER, path)

    def _put_repositories(self) -> None:
        """Also files of apt's. What an earlier run wrote, and isn't wanted or another file has by now, goes."""
        wanted, files, apt = self._wanted, self._files, self.apt
        if not all(map(apt.is_whole, wanted.prerequisites)):
            apt.update()
            apt.install(wanted.prerequisites)
        others = {repository.url: apt.file_of(repository.url) for repository in wanted.repositories}
        own = [one for one in wanted.repositories if others[one.url] in ("", one.list_file)]
        kept = {PINS, *(path for one in own for path in (one.list_file, one.keyring)), *(f.path for f in wanted.files)}
        for path in files.of_layer(LAYER):
            if path.startswith(("/etc/apt/", "/usr/share/keyrings/")) and path not in kept:
                files.drop(LAYER, path)
        for file in wanted.files:
            self._put(file.path, file.content)
        for repository in own:
            self._take_key(repository.key_url, repository.keyring, repository.list_file, repository.line.strip())
            self._put(repository.list_file, repository.line)

    def _take_key(self, url: str, path: str, list_file: str, line: str) -> None:
        """Fetches it, unless it lies there, and belongs to this very line."""
        states = self._files.of_layer(LAYER)
        if states.get(path) == states.get(list_file) == "ok" and self._files.text(list_file).strip() == line:
            return
        self.apt.fetch(url, _KEY)
        self._files.put(LAYER, path, 0o644, self._files.need(_KEY) or b"")
        self._files.remove(_KEY)

    def _choose(self) -> tuple[int, _Way]:
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
        if said.removes:
            words = " ".join(said.removes)
            raise Failure(
                what,
                f"{words} would be removed for it",
                "they aren't this program's to remove; nothing was changed",
                f"remove what is in the way yourself (`apt-get remove {words}`), then run `pulumi up` again",
            )
        for reason in said.against:
            self._system.log.say(f"passed over: {reason}")
        if said.way_back is not None and not self.update.kept.phase:
            self.update.keep(said.version)
        return said.chosen, found

    def _bring(self, way: Try, found: _Way) -> tuple[str, Source]:
        """Packages, libraries, and modules for each kernel; returns the version, and whose it is."""
        system, files, wanted, apt = self._system, self._files, self._wanted, self.apt
        if found.version:
            if self.update.kept.phase:
                self.update.note(phase="trying")
            self._put(PINS, found.pins)
            files.finish()
            if any(map(FAMILY.search, found.words)) and (wanted.target == "host" or driver.cards(system).holder):
                files.set_pending(driver_modules.INITRAMFS)  # the packages renew the newest kernel's at most
            if found.run:
                driver_installer.fetch(apt, found.run, found.run.file(DOWNLOADS))
            elif any(map(FAMILY.search, found.words)) and (
                driver.run_version(system) or driver_installer.INSTALLED.read(files)
            ):
                apt.fetch_packages(found.words, recommends=wanted.recommends)
                driver_installer.remove(apt)
            apt.install(found.words, recommends=wanted.recommends, may_remove=FAMILY)
            if found.run:
                if driver.run_version(system) != found.run.version:
                    driver_installer.remove(apt)
                driver_installer.run(apt, found.run, found.run.file(DOWNLOADS), wanted.target)
        version = driver.library_version(system)
        loaded = nvidia.loaded(system).version
        if wanted.target == "lxc" and loaded not in ("", version):
            raise Failure(
                f"the libraries of the host's driver, {loaded}",
                f"{version} is installed",
                "they must be of one version, to the last digit",
                "run `pulumi up --refresh`: the host's version is read then",
            )
        for kernel in self._kernels():
            driver_modules.build(apt, Module(version, way.flavour or ""), kernel)
        if wanted.target != "lxc":
            driver_modules.renew_initramfs(apt, wanted.target)
        source = self._source()
        driver.NOTE.write(files, driver.Left(version, source, wanted.target, way.flavour or ""))
        return version, source

    def _source(self) -> Source:
        """Whose driver is there. A run that was cut short may have noted nothing of what it had installed."""
        if self._files.exists(driver_installer.INSTALLED.path):
            return "run"
        is_own = any(record.before == "-" and FAMILY.search(name) for name, record in self.apt.records().items())
        return "packages" if is_own else "found"

    def _load(self, version: str, way: Try) -> tuple[Literal["yes", "no", "no-module"], str]:
        """Where that can be done now; returns whether a boot is needed, and why."""
        reboot: Literal["yes", "no", "no-module"] = "no-module"
        why = "a container has no kernel of its own"
        if self._wanted.target != "lxc":
            boot_service.install(self._system, PERSISTENCE)
            reboot, why = driver_modules.load(self.apt, Module(version, way.flavour or ""))
        if reboot == "no":
            done = self._system.run.do("systemctl", "start", f"{PERSISTENCE.name}.service")
            if done.status != 0:
                self._system.log.say(f"note: {PERSISTENCE.name}.service doesn't start now: {done.text}")
        return reboot, why

    def _configure_cuda(self) -> None:
        """Its compiler says its release, and a login finds it."""
        wanted = self._wanted
        if not wanted.cuda:
            self._put(_PROFILE, "")
            return
        release, output = self._release()
        if release != self._short:
            raise Failure(
                f"{self._name}: {wanted.nvcc} of CUDA {self._short}",
                release or f"no release: {output}",
                "programs are compiled with it",
                f"`apt-get install --reinstall cuda-nvcc-{self._short.replace('.', '-')}` there, then run `pulumi up` "
                "again",
            )
        comment = "# Written by homelab, which takes it away again (pulumi destroy)."
        self._put(_PROFILE, f"{comment}\nPATH={wanted.nvcc.rpartition('/')[0]}${{PATH:+:$PATH}}")

    # The update.

    def _resume(self) -> None:
        """What an earlier run has left of an update."""
        update, kept = self.update, self.update.kept
        if not kept.phase:
            update.close()
            return
        first = self._wanted.tries[0] if self._wanted.tries and self.staying() is None else None
        is_wanted = (
            first is not None
            and driver.fits(kept.driver.version, first.driver)
            and first.flavour in (None, kept.driver.flavour)
            and not first.run
        )
        if kept.phase != "back" and not is_wanted:
            return
        self._system.log.say(f"an update of the driver was left half-way: putting {kept.driver.version} back")
        try:
            update.back()
        except (Failure, OSError) as error:
            # It may be that the new one works by now: going on is better than being held here for ever.
            failure = self._undone(error)
            self._system.log.say(f"note: the driver from before could not be put back: {failure.found}")
            update.note(phase="trying")
        self._left = driver.left(self._system)

    def _give_up(self, error: Failure | OSError, before: set[str] | None) -> NoReturn:
        """Ends the run with why it could not be had, and what there is instead.

        :param before: what the layer had added before this run, where that was to bring the first driver.
        """
        reason, update, old = self._undone(error), self.update, self.update.kept.driver.version
        if update.kept.phase not in ("trying", "back"):
            raise self._without_what_came(reason, before) from error
        self._system.log.say(f"note: the update of the driver from {old} failed: {reason.wanted}")
        self._system.work.extend(self._wanted.software.install_seconds)
        try:
            restored = update.back()
        except (Failure, OSError) as also:
            failure = self._undone(also)
            raise reason.but(
                why=f"{reason.why}; and the driver {old} could not be put back: {failure.wanted}; found: "
                f"{failure.found}",
                next=f"run `pulumi up` again when the cause is gone: it first goes on with putting {old} back. "
                f"{failure.next}. For the update: {reason.next}",
            ) from also
        raise reason.but(
            why=f"{reason.why}; the update is given up",
            next=f"the driver {old} is back: {restored}. For another try: {reason.next}",
        ) from error

    def _without_what_came(self, reason: Failure, before: set[str] | None) -> Failure:
        """Why it could not be had, and what there is instead, where nothing was kept."""
        now = ""
        if before is None:
            if self._was not in ("", driver.library_version(self._system)):
                now = f"The driver {self._was} can't be put back: nothing of it could be kept."
        elif {*self.apt.records()} - before or self._files.exists(driver_installer.INSTALLED.path):
            try:
                self.apt.tidy(before) if before else self.take_back()
                self._files.finish()  # the run that fails takes back nothing of that
            except (Failure, OSError) as also:
                now = f"What had come could not be taken back: {self._undone(also).found}."
            else:
                now = "What had come is gone again, with its logs."
        return reason.but(next=f"{reason.next} ({now})") if now else reason

    def _undone(self, error: Failure | OSError) -> Failure:
        """What failed, its files put back."""
        self._files.undo()
        return self._system.failure_of(error)


def add_repositories(apt: Apt, repositories: Sequence[Repository], *, unverified: bool) -> None:
    """Repositories for an apt aside; their lists are fetched. Arguments as of `Apt.refresh`.

    :raises Failure: one can't be had.
    """
    for repository in repositories:
        key = f"{apt.folder}/{repository.keyring.rpartition('/')[2]}"
        apt.fetch(repository.key_url, key, unverified=unverified)
        line = repository.line.replace(repository.keyring, apt.system.files.name(key))
        is_new = not apt.file_of(repository.url)  # asked so, the system's apt would write its cache
        apt.add_source(repository.list_file.rpartition("/")[2], f"{line.strip()}\n", is_new=is_new)
    apt.refresh(unverified=unverified)
