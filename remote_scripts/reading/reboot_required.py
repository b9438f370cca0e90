"""What only a reboot of this host can bring. Decided here alone: for the reboot itself, for a preview, and for what
looks for drift. The answer is the same before and after the boot configuration was written: what counts is what it is
going to have.

/var/lib/homelab/wanted-boot: what the last reboot was decided by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from remote_scripts.boot.loaders.loader import Loader
from remote_scripts.boot.wanted_boot import Boot
from remote_scripts.both.reboot import Reason
from remote_scripts.nvidia import driver, nvidia
from remote_scripts.tools.files import HOME
from remote_scripts.tools.notes import Note
from remote_scripts.tools.pci import DEVICES, driver_of
from remote_scripts.tools.system import System
from remote_scripts.tools.words import missing_words

# Words of the kinds that we write, but for amd_iommu=on. People write the second ones themselves, also at the boot
# menu: only what was ours is ours to end.
_OURS = re.compile(r"(intel_iommu|iommu|homelab\.vfio|modprobe\.blacklist)=")
OVERRIDE = re.compile(
    r"(pcie_acs_override=.*|vfio_iommu_type1\.allow_unsafe_interrupts=.*|initcall_blacklist=sysfb_init)"
)


@dataclass(frozen=True)
class _Noted:
    """`still`: words of overrides that were ours before, and still ran."""

    boot: Boot
    still: tuple[str, ...]


NOTE = Note(f"{HOME}/wanted-boot", _Noted)


def check(system: System, wanted: Boot, loader: Loader) -> list[Reason]:
    """What the running kernel lacks, and only a reboot brings.

    :raises Failure: what is configured, or was noted, can't be read.
    """
    of_boot = [*_words_lack(system, wanted.words, loader), *_functions_lack(system, wanted.functions)]
    return [*of_boot, *(_driver_lacks(system, wanted) if wanted.driver else ())]


def noted(system: System) -> Boot | None:
    """What the last reboot was decided by; None: nothing is noted.

    :raises Failure: it can't be read.
    """
    found = NOTE.read(system.files)
    return found.boot if found else None


def noted_words(system: System) -> list[str]:
    """What we have wanted on the command line: at the last reboot that was decided, and before, where it still ran
    then.

    :raises Failure: it can't be read.
    """
    found = NOTE.read(system.files)
    return [*found.boot.words, *found.still] if found else []


def note(system: System, wanted: Boot) -> None:
    """So that it is known on this host what its boot is to have.

    :raises Failure: what is noted can't be read.
    """
    running = system.files.text("/proc/cmdline")
    still = [word for word in noted_words(system) if OVERRIDE.fullmatch(word) and not missing_words(word, running)]
    NOTE.write(system.files, _Noted(wanted, tuple(still)))


def _words_lack(system: System, words: tuple[str, ...], loader: Loader) -> Iterator[Reason]:
    running = system.files.need_text("/proc/cmdline")
    # The kernel doesn't know amd_iommu=on (drivers/iommu/amd/init.c, parse_amd_iommu_options): it needs no boot.
    if (missing := " ".join(missing_words(" ".join(words), running))) not in ("", "amd_iommu=on"):
        yield Reason(f"{missing} is not on the running kernel's command line", gets=missing)
    # Words of homelab's that run, and are neither wanted nor another file's.
    coming = f"{loader.configured(system, {})} {' '.join(words)}"
    own = " ".join(noted_words(system))
    for word in missing_words(running, coming):
        if _OURS.match(word) or (OVERRIDE.fullmatch(word) and not missing_words(word, own)):
            yield Reason(f"{word} is no longer wanted", loses=word)


def _functions_lack(system: System, functions: tuple[str, ...]) -> Iterator[Reason]:
    """A card that isn't there is nothing that a boot brings; the gates and the verification name it."""
    for address in functions:
        bound_to = driver_of(system, address)
        if bound_to != "vfio-pci" and system.files.exists(f"{DEVICES}/{address}"):
            yield Reason(
                f"{address} is on {bound_to or 'no driver'}, not on vfio-pci", function=address, driver="vfio-pci"
            )


def _driver_lacks(system: System, wanted: Boot) -> Iterator[Reason]:
    """Another module of NVIDIA's, or nouveau, lets go of a card at a boot alone. One that nothing has is taken
    without.
    """
    loaded = nvidia.loaded(system)
    if loaded.version and wanted.flavour and loaded.flavour != wanted.flavour:
        yield Reason(f"NVIDIA's {loaded.flavour} modules are loaded, not the {wanted.flavour} ones")
    elif loaded.version not in ("", wanted.driver):
        yield Reason(f"NVIDIA's driver {loaded.version} is loaded, not {wanted.driver}")
    for address, name in driver.held(system).items():
        if address not in wanted.functions:
            yield Reason(f"{address} is on {name}, not on NVIDIA's driver", function=address, driver="NVIDIA's driver")
