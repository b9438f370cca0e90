"""What each layer of NVIDIA's stack is to do, from a plan and settings. The layers carry out the plan, and decide
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from homelab.host.kernel_log import OF_MODULES
from homelab.nvidia.compatibility import Target, load
from homelab.nvidia.driver_source import unknown_sha256
from homelab.nvidia.plan import Plan
from homelab.nvidia.request import Request
from homelab.nvidia.versions import parse
from homelab.remote.scripts import file
from homelab.settings.nvidia import Nvidia
from homelab.shapes import Tried
from remote_scripts.both import container_toolkit, cuda_toolkit, nvidia_driver, nvidia_repository, nvidia_verification
from remote_scripts.both import driver_update as driver_update_layer
from remote_scripts.shared.software import Installer, Software
from remote_scripts.shared.symptoms import Context


def repository(
    plan: Plan, settings: Nvidia, context: Context, packages: Sequence[str] = ()
) -> nvidia_repository.Wanted:
    """What the layer nvidia_repository is to do.

    :param context: for messages.
    :param packages: packages whose versions the answer has (`plan.packages_to_ask_for`).
    """
    return nvidia_repository.Wanted(
        software=software(settings, context),
        prerequisites=tuple(name for name in plan.prerequisites if name in load().packaging.prerequisites),
        repositories=plan.repositories,
        files=tuple(file for file in (plan.preferences, plan.unattended) if file),
        ask=tuple(packages),
    )


def cuda(plan: Plan, settings: Nvidia, context: Context) -> cuda_toolkit.Wanted:
    """What the layer cuda_toolkit is to do.

    :param context: for messages.
    :raises ValueError: the plan has no CUDA.
    """
    if plan.cuda is None:
        raise ValueError("the plan has no CUDA")
    return cuda_toolkit.Wanted(
        software=software(settings, context),
        # nvcc hands half of its work to the host's compiler, which its package doesn't bring everywhere.
        packages=(*plan.cuda.packages, load().packaging.build[-1]),
        beside=tuple(plan.cuda.library_packages),
        release=plan.cuda.release,
        nvcc=plan.cuda.nvcc,
    )


def toolkit(plan: Plan, settings: Nvidia, context: Context, driver_version: str) -> container_toolkit.Wanted:
    """What the layer container_toolkit is to do; other arguments as of `cuda`.

    :param driver_version: of the libraries that the CDI specification names.
    :raises ValueError: the plan has no container toolkit.
    """
    if plan.toolkit is None:
        raise ValueError("the plan has no container toolkit")
    toolkit_plan = plan.toolkit
    return container_toolkit.Wanted(
        target=plan.target,
        runtime=toolkit_plan.runtime,
        software=software(settings, context),
        packages=tuple(toolkit_plan.packages),
        # What the settings say, not what the plan has to install now: it stays the same once the runtime is there.
        install=toolkit_plan.package if settings.docker == "install" else "",
        cdi=toolkit_plan.cdi,
        cdi_options=tuple(toolkit_plan.cdi_options),
        driver=driver_version,
        capabilities=(*plan.capabilities, *(("demanded",) if plan.demanded else ())),
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


def driver(plan: Plan, settings: Nvidia, context: Context) -> nvidia_driver.Wanted:
    """What the layer nvidia_driver is to do; arguments as of `repository`."""
    first_packages, run = load().packaging.prerequisites, plan.run
    unpinned = unknown_sha256(run, context.name) if run and not run.sha256 else None
    return nvidia_driver.Wanted(
        target=plan.target,
        driver=plan.driver,
        software=software(settings, context),
        source=plan.source,
        flavour=plan.flavour,
        prerequisites=tuple(name for name in plan.prerequisites if name not in first_packages),
        packages=plan.packages,
        recommends=not plan.no_recommends,
        libraries=tuple(load().libraries(plan.capabilities)) if plan.demanded else (),
        unwanted=plan.unwanted,
        run=Installer(version=run.version, url=run.url, sha256=run.sha256, arguments=run.arguments) if run else None,
        run_prerequisites=run.prerequisites if run else (),
        unpinned=tuple(unpinned.parts().values()) if unpinned else (),
    )


def asked(plan: Plan, settings: Nvidia, context: Context) -> nvidia_driver.Wanted:
    """What the layer nvidia_driver is asked, which then changes nothing; arguments as of `driver`."""
    return replace(driver(plan, settings, context), repositories=repository(plan, settings, context))


def driver_update(target: Target, settings: Nvidia, name: str) -> driver_update_layer.Wanted:
    """What the layer driver_update is asked.

    :param name: the system's, for messages.
    """
    return driver_update_layer.Wanted(target=target, software=software(settings, Context(name, target)))


def software(settings: Nvidia, context: Context) -> Software:
    """What every layer that installs something is told."""
    timeouts = settings.timeouts
    return Software(
        context=context,
        lock_seconds=timeouts.lock,
        download_seconds=timeouts.download,
        install_seconds=timeouts.install,
    )
