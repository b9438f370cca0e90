"""What is there of NVIDIA's stack, and what apt would do for the rest: the first way to the driver that can be had."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from remote_scripts.apt.apt import Apt
from remote_scripts.apt.asked import AskedApt
from remote_scripts.apt.packages import Plan
from remote_scripts.boot import boot
from remote_scripts.both.nvidia_packages import Said, Try, Wanted
from remote_scripts.both.software import Installer
from remote_scripts.nvidia import driver, driver_installer, replaced
from remote_scripts.nvidia.driver import FAMILY, LAYER, PINS
from remote_scripts.nvidia.engines import is_there
from remote_scripts.nvidia.nvidia import Module
from remote_scripts.tools.system import System

# What the files of NVIDIA's installer take at the least.
_RUN_BYTES = 400_000_000
_OF_THE_KERNEL = re.compile(r"dkms|^linux-(image|headers|modules|objects)|^nvidia-kernel-(source|open|support)")
#: Which lack their network, or their build, without what they recommend.
ENGINES = {"docker.io": "docker", "podman": "podman"}
_KERNEL = re.compile(r"^(linux-(image|modules)-|(proxmox|pve)-kernel-|nvidia-fs)")
# What has the driver's version wherever it comes from.
_OF_ONE_VERSION = re.compile(r"(libnvidia-compute|libnvidia-ml1|libcuda1|nvidia-utils|nvidia(-kernel)?(-open)?-dkms)\b")
_NUMBER = re.compile(r"(?:\d+:)?(\d{3}\.[\d.]*\d)")


@dataclass(frozen=True)
class Way:
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


class Choice:
    """What is wanted, beside what is there; it changes nothing.

    :param wanted: of the layer nvidia_packages.
    """

    def __init__(self, system: System, wanted: Wanted) -> None:
        self._system = system
        self._files = system.files
        self._wanted = wanted
        self.apt = Apt(system, wanted.software, LAYER, "NVIDIA's packages")
        self._left = driver.left(system)
        # Read before the record forgets what its owner has removed.
        self._brought = self.apt.records().keys()
        self._was = driver.library_version(system)
        self._name = wanted.software.context.name
        theirs = ("cuda-",) if self._is_somebodys_cuda() else ()
        own = (word for word in wanted.beside if not word.startswith(theirs))
        self._beside = tuple(word for word in own if not self._is_somebodys_engine(word))

    # What is there.

    def staying(self) -> int | None:
        """The number of the first try whose driver is there; None: none is."""
        there = driver.library_version(self._system)
        return next((number for number, way in enumerate(self._wanted.tries) if self._fulfils(way, there)), None)

    def fulfilled(self) -> int | None:
        """The same, where all that is wanted beside it is there, too."""
        needed = (*self._beside, *(self._bare_kernels() if self._left.source in ("packages", "run") else ()))
        return self.staying() if all(map(self.apt.is_whole, needed)) else None

    def _brought_more(self, way: Try) -> bool:
        """Whether this layer has brought packages that only a better way to the same driver has: one with all of this
        one's, and more. What somebody has removed of them comes back; nobody has asked for the others to go.
        """
        more = set[str]()
        for other in self._wanted.tries:
            is_alike = (other.driver, other.flavour) == (way.driver, way.flavour)
            if is_alike and {*other.packages} > {*way.packages}:
                more |= {*other.packages} - {*way.packages}
        return any(word.partition("=")[0] in self._brought for word in more)

    def _fulfils(self, way: Try, version: str) -> bool:
        """Whether its driver is the version that is there, with its libraries, whoever did that."""
        system = self._system
        is_kept = (
            driver.fits(version, way.driver)
            and not self._brought_more(way)
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
        """Wanted packages of headers -> kernels that have none, whichever package would have brought them."""
        kernels = (one for one in self._kernels() if not self._files.is_folder(f"/usr/lib/modules/{one}/build"))
        bare = {f"{prefix}{kernel}": kernel for kernel in kernels for prefix in driver.HEADERS}
        return {name: bare[name] for name in self._wanted.headers if name in bare}

    def _half_configured(self) -> bool:
        """Whether a package of the driver's is there, and not wholly installed."""
        there = self.apt.installed()
        return any(name not in there.whole for name in there.present if FAMILY.search(name))

    def _is_somebodys_cuda(self) -> bool:
        """NVIDIA's installer puts a toolkit to the same place as the packages do. Half of a package may be there after
        a kill.
        """
        short = ".".join(self._wanted.cuda.split(".")[:2])
        is_there = bool(short) and self._files.is_file(self._wanted.nvcc)
        package = f"cuda-nvcc-{short.replace('.', '-')}"
        return is_there and package not in self.apt.installed().present and self._release() == short

    def _is_somebodys_engine(self, package: str) -> bool:
        """Docker's own packages conflict with docker.io."""
        engine = ENGINES.get(package, "")
        return bool(engine) and package not in self.apt.installed().present and is_there(self._system, engine)

    def _release(self) -> str:
        """CUDA's release, as its compiler says it."""
        done = self._system.run.ask(self._files.name(self._wanted.nvcc), "--version")
        return (re.search(r"release ([0-9]+\.[0-9]+)", done.text) or ["", ""])[1]

    # What apt would do.

    def said(self, apt: AskedApt) -> tuple[Said, Way]:
        """What it would do, and how.

        :param apt: aside.
        """
        tries, against = self._wanted.tries, list[str]()
        there, staying = driver.library_version(self._system), self.staying()
        headers, lacking = self._headers(apt)
        # Debian's headers of a newer kernel bring that.
        with_headers = {*apt.simulate_install(headers).coming} if headers else set()
        beside = [apt.resolved(word) for word in (*self._beside, *headers) if not self.apt.is_whole(word)]
        room = boot.free_on(self._system, "/usr")
        said = Said(chosen=None, was=there, room=room, lacking=lacking if staying is None else (), pins=self._pinned())
        for number, version in self._ways(there, staying):
            way = tries[number]
            stays = (number, version) == (staying, there)
            found = self._simulated(apt, way, version, beside, with_headers, stays=stays)
            if not found.against:
                said = replace(
                    said,
                    against=tuple(against),
                    chosen=number,
                    version=found.version,
                    comes=tuple(f"{name}={new}" for name, new in found.plan.coming.items()),
                    removes=tuple(self.apt.of_others(found.plan.going, FAMILY)),
                    way_back=replaced.can_be_had(apt) if not stays and self._replaces(way, found.plan) else None,
                    needs=apt.bytes_of(found.plan) + (_RUN_BYTES if found.run else 0),
                )
                return said, found
            how = "NVIDIA's installer" if way.run else " ".join(way.packages)
            if not any(text.startswith(f"{version} ") and found.against in text for text in against):
                against.append(f"{version} ({how}): {found.against}")
        names = {way.packages[-1].partition("=")[0] for way in tries if way.packages and not way.run}
        texts = (text for texts in apt.offered(*sorted(names)).values() for text in texts)
        offered = dict.fromkeys(match[1] for text in texts if (match := _NUMBER.match(text)))
        # What isn't offered at all stands against every way.
        against = apt.lacking([word for word in self._beside if not self.apt.is_whole(word)]) or against
        return replace(said, offered=tuple(offered), against=tuple(against)), Way()

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
        return any(change.before != "-" and FAMILY.search(name) for name, change in plan.changes.items())

    def _pins(self, version: str) -> str:
        """apt goes to this version and no other, also to an older one: above 1000 it does."""
        pattern = f"{version}*" if "." in version else f"{version}.*"
        return f"Package: {' '.join(self._wanted.pinned)}\nPin: version {pattern}\nPin-Priority: 1001\n"

    def _simulated(
        self, apt: AskedApt, way: Try, version: str, beside: Sequence[str], with_headers: set[str], *, stays: bool
    ) -> Way:
        """:param with_headers: what comes with kernels' headers.
        :param stays: the driver is there, and nothing is to change of it.
        """
        wanted, there = self._wanted, driver.library_version(self._system)
        of_run = way.run is not None or (stays and driver.run_version(self._system) != "")
        pins = "" if of_run else self._pins(version)
        apt.pin(PINS.rpartition("/")[2], pins)
        own = [] if stays else [apt.resolved(word) for word in way.packages]
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
        elif bare := [name for name in {*coming} - with_headers if _KERNEL.search(name)]:
            against = f"apt would also bring {' '.join(bare)}"
        elif not against and not driver.fits(by_then, way.driver):  # also where nothing would change
            against = f"apt has no {way.driver}, and leaves {by_then or 'none'}"
        return Way(pins, (*words, *gone), plan, by_then, against, None if stays else way.run)

    def _pinned(self) -> tuple[str, ...]:
        """The owner's files that give versions of the driver's packages a priority."""
        folder = PINS.rpartition("/")[0]
        paths = (f"{folder}/{name}" for name in self._files.names(folder) if not name.startswith("homelab-"))
        return tuple(path for path in paths if "nvidia" in self._files.text(path))

    def _headers(self, apt: AskedApt) -> tuple[list[str], tuple[str, ...]]:
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
