"""The standard input of each script of NVIDIA's stack, from a plan and settings. The scripts carry out the plan, and
decide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from homelab.errors import HomelabError
from homelab.host.kernel_log import OF_MODULES
from homelab.nvidia.compatibility import Target, load
from homelab.nvidia.plan import AptFile, Plan, Repository, unknown_sha256
from homelab.nvidia.request import Request
from homelab.nvidia.symptoms import Context, Symptom, symptoms
from homelab.nvidia.versions import parse
from homelab.remote.scripts import compose, file
from homelab.settings.nvidia import Nvidia
from homelab.shapes import Tried
from remote_scripts.layers import nvidia_verification

__all__ = [
    "cuda",
    "driver",
    "driver_update",
    "in_container",
    "package_arguments",
    "repository",
    "toolkit",
    "tried",
    "verification",
]

# The programs whose symptoms the scripts explain; symptoms of the card itself are recognised in Python.
_MET_BY_SCRIPTS = re.compile(r"apt|dpkg|dkms|curl|sha256sum|installer|modprobe|nvidia-ctk")


def in_container(ctid: int, script: str) -> str:
    """Standard input of in_container.sh, which runs on the host and hands its verb to a script in a container.

    :param ctid: the container's id.
    :param script: a composed text.
    """
    return compose("in_container.sh", CTID=str(ctid), SCRIPT=script)


def repository(
    plan: Plan, settings: Nvidia, packages: Sequence[str] = (), *, context: Context | None = None, generation: str = "0"
) -> str:
    """Standard input of nvidia_repository.sh.

    :param packages: packages whose versions the answer has (`plan.packages_to_ask_for`).
    :param context: for messages; by default the plan's.
    :param generation: not used by the script; a new one makes Pulumi run it again.
    """
    first_packages = [name for name in plan.prerequisites if name in load().packaging.prerequisites]
    apt_files = [apt for apt in (plan.preferences, plan.unattended) if apt]
    return compose(
        "nvidia_repository.sh",
        **package_arguments(settings, context or _context(plan)),
        LOCKED=plan.locked,
        PREREQUISITES=" ".join(first_packages),
        REPOSITORIES="\n".join("\t".join(_repository_columns(row)) for row in plan.repositories),
        APT_FILES="\n".join(f"{apt.path}\t{_printf_text(apt)}" for apt in apt_files),
        ASK=" ".join(packages),
        GENERATION=generation,
    )


def cuda(plan: Plan, settings: Nvidia, *, context: Context | None = None, generation: str = "0") -> str:
    """Standard input of cuda_toolkit.sh.

    :param context: for messages; by default the plan's.
    :param generation: not used by the script; a new one makes Pulumi run it again.
    :raises ValueError: the plan has no CUDA.
    """
    if plan.cuda is None:
        raise ValueError("the plan has no CUDA")
    return compose(
        "cuda_toolkit.sh",
        **package_arguments(settings, context or _context(plan)),
        LOCKED=plan.locked,
        # nvcc hands half of its work to the host's compiler, which its package doesn't bring everywhere.
        PACKAGES=" ".join((*plan.cuda.packages, load().packaging.build[-1])),
        BESIDE=" ".join(plan.cuda.library_packages),
        RELEASE=plan.cuda.release,
        NVCC=plan.cuda.nvcc,
        GENERATION=generation,
    )


def toolkit(
    plan: Plan, settings: Nvidia, driver_version: str, *, context: Context | None = None, generation: str = "0"
) -> str:
    """Standard input of container_toolkit.sh; other arguments as of `cuda`.

    :param driver_version: of the libraries that the CDI specification names.
    :raises ValueError: the plan has no container toolkit.
    """
    if plan.toolkit is None:
        raise ValueError("the plan has no container toolkit")
    toolkit_plan = plan.toolkit
    # What the settings say, not what the plan has to install now: the text stays the same once the runtime is there.
    install = toolkit_plan.package if settings.docker == "install" else ""
    return compose(
        "container_toolkit.sh",
        **package_arguments(settings, context or _context(plan)),
        LOCKED=plan.locked,
        TARGET=plan.target,
        RUNTIME=toolkit_plan.runtime,
        PACKAGES=" ".join(toolkit_plan.packages),
        INSTALL=install,
        CONFIGURE=" ".join(toolkit_plan.configure),
        RESTART=toolkit_plan.restart,
        CDI=toolkit_plan.cdi,
        CDI_OPTIONS=" ".join(toolkit_plan.cdi_options),
        DRIVER=driver_version,
        CAPABILITIES=" ".join((*plan.capabilities, *(("demanded",) if plan.demanded else ()))),
        GENERATION=generation,
    )


def tried(request: Request, plan: Plan) -> Tried:
    """The parts of a plan that `verification` needs."""
    cdi = plan.toolkit is not None and bool(plan.toolkit.cdi)
    return {"cards": len(request.devices or ()), "capabilities": list(plan.capabilities), "cdi": cdi}


def verification(target: Target, settings: Nvidia, of_plan: Tried) -> nvidia_verification.Wanted:
    """What the layer nvidia_verification is to try.

    :param of_plan: as of `tried`.
    """
    has_cards, data = of_plan["cards"] != 0, load()
    with_cuda, engine = settings.cuda if has_cards else None, settings.container_toolkit if has_cards else None
    beside = data.cuda_libraries(settings.cudnn, nccl=settings.nccl) if settings.cuda else ()
    libraries = (*data.libraries(of_plan["capabilities"]), *(row.soname for row in beside))
    return nvidia_verification.Wanted(
        nvcc=data.cuda.nvcc(parse(settings.cuda)) if settings.cuda else "",
        program=file("vector_addition.cu") if with_cuda else "",
        engine=engine or "",
        image=data.packaging.toolkit.image,
        cdi=engine is not None and of_plan["cdi"],
        uvm=has_cards,
        libraries=libraries if has_cards else (),
        bare=tuple(data.libraries(of_plan["capabilities"], bare=True)) if engine else (),
        loader=file("load_libraries.py") if has_cards else "",
        kernel_log=OF_MODULES if target != "lxc" else "",
        seconds=settings.timeouts.verify,
    )


def driver(
    plan: Plan, settings: Nvidia, *, context: Context | None = None, generation: str = "0", awaited: bool = False
) -> str:
    """Standard input of nvidia_driver.sh; other arguments as of `repository`.

    :param awaited: keep the earlier driver until `driver_update` ends the update.
    """
    first_packages, run = load().packaging.prerequisites, plan.run
    return compose(
        "nvidia_driver.sh",
        **package_arguments(settings, context or _context(plan)),
        LOCKED=plan.locked,
        TARGET=plan.target,
        DRIVER=plan.driver,
        FLAVOUR=plan.flavour or "",
        SOURCE=plan.source,
        PREREQUISITES=" ".join(name for name in plan.prerequisites if name not in first_packages),
        PACKAGES=" ".join(plan.packages),
        LIBRARIES=" ".join(load().libraries(plan.capabilities)) if plan.demanded else "",
        UNWANTED=" ".join(plan.unwanted),
        RECOMMENDS="no" if plan.no_recommends else "yes",
        RUN_VERSION=run.version if run else "",
        RUN_URL=run.url if run else "",
        RUN_SHA256=run.sha256 if run else "",
        RUN_UNPINNED=_error_lines(unknown_sha256(run, (context or _context(plan)).name))
        if run and not run.sha256
        else "",
        RUN_PREREQUISITES=" ".join(run.prerequisites) if run else "",
        RUN_ARGUMENTS=" ".join(run.arguments) if run else "",
        PERSISTENCE=file("homelab-nvidia-persistence.service") if plan.target != "lxc" else "",
        **({"AWAITED": "yes"} if awaited else {}),
        GENERATION=generation,
    )


def driver_update(target: Target, settings: Nvidia, name: str, containers: Sequence[int] = ()) -> str:
    """Standard input of driver_update.sh, with the verb `waiting`, `confirm` or `back`.

    :param name: the system's, for messages.
    :param containers: of a host: the ids of the containers that get its new driver, too.
    """
    followers = {"CONTAINERS": " ".join(map(str, containers))} if containers else {}
    return compose("driver_update.sh", **package_arguments(settings, Context(name, target)), TARGET=target, **followers)


def _repository_columns(repository: Repository) -> Sequence[str]:
    """A repository's line of REPOSITORIES, as nvidia_repository.sh has it."""
    address, suite = repository.line.split()[-2:]
    return (
        address.rstrip("/"),
        suite,
        repository.list_file,
        repository.line.strip(),
        repository.key_url,
        repository.key_fingerprint,
        repository.keyring,
    )


def _printf_text(apt: AptFile) -> str:
    """A file's content for printf %b, without its last newline, which put_file adds."""
    return apt.content.removesuffix("\n").replace("\\", "\\\\").replace("\n", "\\n")


def _error_lines(error: HomelabError) -> str:
    return "\n".join((error.wanted, error.found, error.why, error.next))


def _context(plan: Plan) -> Context:
    return Context(target=plan.target, flavour=plan.flavour, driver=plan.version or f"branch {plan.driver}")


def package_arguments(settings: Nvidia, context: Context) -> dict[str, str]:
    """The arguments of remote_scripts/lib/packages.sh: name -> value."""
    timeouts = settings.timeouts
    return {
        "NAME": context.name,
        "SYMPTOMS": _symptom_table(context),
        "PROXY": _proxy(settings),
        "LOCK_SECONDS": str(timeouts.lock),
        "DOWNLOAD_SECONDS": str(timeouts.download),
        "INSTALL_SECONDS": str(timeouts.install),
    }


def _proxy(settings: Nvidia) -> str:
    return settings.proxy.get_secret_value() if settings.proxy else ""


def _symptom_table(context: Context) -> str:
    """The symptoms for the function `explain` of the scripts, a line each, with the cause in this context; `explain`
    fills in `{what}` from the program's output.
    """
    rows = [row for row in symptoms() if _MET_BY_SCRIPTS.search(row.where)]
    return "\n".join("\t".join(_symptom_columns(row, context)) for row in rows)


def _symptom_columns(row: Symptom, context: Context) -> Sequence[str]:
    cause = row.cause(context)
    values = {**row.values(context), "what": "{what}"}
    texts = (text.format(**values) for text in (row.wanted, cause.why, cause.next))
    return (row.name, row.expression, row.where, *texts, " ".join(row.hides))
