"""What each layer of NVIDIA's stack is to do once its packages are there. The layers carry that out, and decide
nothing.
"""

from __future__ import annotations

from homelab.facts.kernel_log import OF_MODULES
from homelab.nvidia import plan
from homelab.nvidia.request import Request
from homelab.remote.scripts import file
from homelab.shapes import Runtime
from remote_scripts.both import container_toolkit, nvidia_verification
from remote_scripts.both.nvidia_packages import Answer


def toolkit(runtime: Runtime, request: Request, installed: Answer) -> container_toolkit.Wanted:
    """What the layer container_toolkit is to do.

    :param runtime: that of the settings.
    :param installed: what the packages' step has answered.
    """
    settings, data = request.settings, request.data.toolkit
    return container_toolkit.Wanted(
        target=request.target,
        runtime=runtime,
        software=plan.software(settings, plan.context(request)),
        cdi=plan.cdi(request),
        cdi_options=data.without_groups if runtime == "podman" else (),
        options_since=str(data.groups_since),
        podman_reads=str(data.podman_reads_groups),
        driver=installed.version,
        capabilities=(*installed.capabilities, *(("demanded",) if settings.capabilities else ())),
    )


def verification(request: Request, installed: Answer) -> nvidia_verification.Wanted:
    """What the layer nvidia_verification is to try: without cards nothing; otherwise as of `toolkit`."""
    settings, data, has_cards = request.settings, request.data, bool(request.devices)
    engine = settings.container_toolkit if has_cards else None
    of_driver = data.libraries(installed.capabilities)
    return nvidia_verification.Wanted(
        nvcc=plan.nvcc(request.cuda) if request.cuda else "",
        program=file("vector_addition.cu") if settings.cuda and has_cards else "",
        engine=engine or "",
        image=data.toolkit.image,
        cdi=bool(engine and plan.cdi(request)),
        uvm=has_cards,
        libraries=(*of_driver, *(row.soname for row in plan.beside_cuda(request))) if has_cards else (),
        bare=data.libraries(installed.capabilities, bare=True) if engine else (),
        loader=file("load_libraries.py") if has_cards else "",
        kernel_log=OF_MODULES if request.target != "lxc" else "",
        seconds=settings.timeouts.verify,
    )
