"""CUDA's toolkit of one release, without a driver, and the libraries beside it (cuDNN, NCCL).

Changes packages, and /etc/profile.d/homelab-cuda.sh, so that a login finds nvcc. Packages of another release that this
program added go, once the wanted one is there. A toolkit that a user installed without packages is left as it is.
`revert` undoes exactly what was added; what others need by now stays, and is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from remote_scripts.both.cuda_toolkit import Answer, Wanted
from remote_scripts.shared import driver
from remote_scripts.shared.packages import Packages, Reverted
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes
from remote_scripts.tools.text import as_text

_LAYER = "cuda"
_PROFILE = "/etc/profile.d/homelab-cuda.sh"
# The driver, kernels, and what else of NVIDIA is a module.
_NEVER = re.compile(rf"{driver.FAMILY.pattern}|^(linux-(image|modules)-|(proxmox|pve)-kernel-|nvidia-fs)")


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Installs it.

    :raises Failure: it would change a driver or a kernel; apt can't do it; or its compiler doesn't say its release.
    """
    packages, files = _packages(system, wanted), system.files
    if _is_somebodys(packages, wanted):
        system.log.say(f"note: CUDA {wanted.short} is there, and not from packages: left as it is")
    else:
        packages.install(wanted.packages)
        others = [name for name in _added(packages) if _is_of_another(name, wanted.short.replace(".", "-"))]
        _drop(packages, others, "another release: ", "another release of CUDA is wanted")
    # Also beside a user's toolkit.
    packages.install(wanted.beside)
    beside = {name.partition("=")[0] for name in wanted.beside}
    others = [name for name in _added(packages) if name.startswith(("libcudnn", "libnccl")) and name not in beside]
    why = "the settings leave them out, or want another release of CUDA"
    _drop(packages, others, "what is no longer wanted beside CUDA: ", why)
    output = _nvcc_says(system, wanted)
    release = _release_in(output)
    if release != wanted.short:
        raise Failure(
            f"{wanted.software.context.name}: {wanted.nvcc} of CUDA {wanted.short}",
            release or f"no release: {output}",
            "programs are compiled with it",
            f"`apt-get install --reinstall cuda-nvcc-{wanted.short.replace('.', '-')}` there, then run `pulumi up` "
            "again",
        )
    folder = wanted.nvcc.rpartition("/")[0]
    comment = "# Written by homelab, which takes it away again (pulumi destroy)."
    files.put(_LAYER, _PROFILE, 0o644, f"{comment}\nPATH={folder}${{PATH:+:$PATH}}\n".encode())
    packages.note_step()
    return Answer(release, wanted.nvcc, tuple(packages.of_layer()), files.changed)


@changes
def revert(system: System, wanted: Wanted) -> Reverted:
    """Removes what was added.

    :raises Failure: apt can't do it.
    """
    packages = _packages(system, wanted)
    if packages.is_anothers():
        return Reverted((), False)
    system.files.drop(_LAYER, _PROFILE)
    packages.remove()
    return packages.reverted()


def _packages(system: System, wanted: Wanted) -> Packages:
    return Packages(system, wanted.software, _LAYER, f"CUDA toolkit {wanted.release}", never=_NEVER)


def _nvcc_says(system: System, wanted: Wanted) -> str:
    done = system.run.ask(system.files.name(wanted.nvcc), "--version")
    return "\n".join(as_text(done.output + done.error).rstrip("\n").split("\n")[-3:])


def _release_in(output: str) -> str:
    return (re.search(r"release ([0-9]+\.[0-9]+)", output) or ["", ""])[1]


def _is_somebodys(packages: Packages, wanted: Wanted) -> bool:
    """NVIDIA's installer puts a toolkit to the same place as the packages do. Half of a package may be there after a
    kill.
    """
    files = packages.system.files
    package = f"cuda-nvcc-{wanted.short.replace('.', '-')}"
    if not files.is_file(wanted.nvcc) or package in packages.installed().present:
        return False
    return _release_in(_nvcc_says(packages.system, wanted)) == wanted.short


def _added(packages: Packages) -> list[str]:
    """What this program added, and is there."""
    return [name for name, record in packages.records().items() if record.now != "-" and record.before == "-"]


def _is_of_another(name: str, release: str) -> bool:
    match = re.search(r"-([0-9]+-[0-9]+)(-|$)", name)
    return match is not None and match[1] != release


def _drop(packages: Packages, names: Sequence[str], what: str, why: str) -> None:
    if names:
        packages.repair()
        packages.purge(names, what, why)
        packages.settle()
