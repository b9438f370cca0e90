"""The stack's outputs, on which other programs may rely, as models.

`version` is raised when something is taken away or changes its meaning; additions leave it as it is. A consumer reads
`version` first, ignores keys that it doesn't know, and takes a key that is missing as null where null is allowed:
Pulumi's Python SDK drops nulls from what a StackReference reads. One in Python calls `consumed`.
docs/outputs.schema.json is made from these models, by `python -m homelab.contract`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from homelab.errors import HomelabError

VERSION = 1


def _whole(value: Any) -> Any:
    # Pulumi carries every number as a floating-point one: 103.0 is 103.
    return int(value) if isinstance(value, float) and value.is_integer() else value


WholeNumber = Annotated[int, BeforeValidator(_whole)]


class _OutputPart(BaseModel):
    # Additions don't break a consumer that was written for an earlier set of keys; text for a number would be a change.
    # A program that puts them out has no use for the models.
    model_config = ConfigDict(extra="ignore", populate_by_name=True, strict=True, defer_build=True)


class Function(_OutputPart):
    """A PCI function. `address`: 0000:01:00.0; `id`, `subsystem`: vendor:device; `class`: six hexadecimal digits."""

    address: str
    id: str
    subsystem: str
    class_code: str = Field(alias="class")
    driver: str = Field(description="the kernel driver that has it; empty: none")
    iommu_group: WholeNumber | None = Field(None, alias="iommuGroup")


class Bar(_OutputPart):
    """A base address register. `size` in bytes."""

    index: int
    size: int


class SeenFunction(_OutputPart):
    """A PCI function as a VM saw it. `guest`: its address in the VM; `address`: the host's."""

    guest: str
    address: str
    id: str
    class_code: str = Field(alias="class")
    bars: list[Bar]


class Test(_OutputPart):
    """A passthrough test: what was there from inside, under which kernel."""

    __test__ = False  # for pytest, which takes every class of that name for tests

    kernel: str
    functions: list[SeenFunction]


class GpuOutput(_OutputPart):
    """A card of a host."""

    slot: str = Field(description="0000:01:00")
    name: str = Field(description="what the host's pci.ids call it, such as RTX 4090; empty: not known")
    path: str = Field(
        description="the card in Proxmox VE's notation: its slot, or its functions where the slot holds others, too",
    )
    use: Literal["vm", "lxc", "host", "shared"] = Field(description="who it is for")
    functions: list[Function]
    iommu_group: WholeNumber | None = Field(None, alias="iommuGroup")
    mapping: str | None = Field(
        None, description="id of its PCI mapping in Proxmox VE; null where it isn't offered to VMs"
    )
    hostpci: str | None = Field(None, description="a value for a VM's hostpciN option")
    holder: str | None = Field(None, description="the VM of this stack that has it, by its name in `vms`")
    test: Test | None = Field(default=None, description="what the passthrough test's VM saw of it; null: not asked for")


class Iommu(_OutputPart):
    """What the running kernel made of it."""

    groups: WholeNumber = Field(description="how many there are; 0: it is off")
    kernel_log: list[str] = Field(
        alias="kernelLog",
        description="the kernel's lines about it that tell of something wrong; none on a healthy host",
    )


class NvidiaGpu(_OutputPart):
    """A card as nvidia-smi sees it; null: it doesn't say."""

    name: str | None = None
    uuid: str | None = None
    memory: str | None = Field(None, description="such as `32607 MiB`")
    address: str | None = Field(None, description="on the PCI bus of the system that has the driver")
    compute_capability: str | None = Field(None, alias="computeCapability")


class NvidiaOutput(_OutputPart):
    """NVIDIA's stack on a system, verified from inside."""

    driver: str = Field(description="the version in use")
    flavour: Literal["open", "proprietary"] | None = Field(
        None, description="of the kernel modules; null in a container"
    )
    gpus: list[NvidiaGpu]
    cuda: str | None = Field(None, description="nvcc's release; null: not asked for")
    program: bool | None = Field(None, description="a CUDA program was compiled and run; null: not asked for")
    container: bool | None = Field(None, description="a container on the system saw the cards; null: not asked for")
    uvm: bool | None = Field(None, description="an ordinary user can use CUDA; null: not asked for")
    video: bool | None = Field(None, description="the libraries of NVENC and NVDEC load; null: not installed")
    nvenc: str | None = Field(None, description="the newest version of NVENC's interface that its library has")
    cudnn: str | None = Field(None, description="the version of cuDNN; null: not asked for")
    nccl: str | None = Field(None, description="the version of NCCL; null: not asked for")
    cdi: str | None = Field(
        None,
        description="the driver's version that the CDI specification names; null: containers don't get cards by it",
    )
    unchecked: list[str] = Field(
        description="what could not be tried, and why: an image that can't be fetched; the field container is null "
        "then",
    )
    graphics: bool | None = Field(None, description="the libraries of EGL, OpenGL and Vulkan load; null: not asked for")


class HostOutput(_OutputPart):
    """A verified host."""

    node: str = Field(description="its name in Proxmox VE")
    kernel: str = Field(description="the running one, as `uname -r` prints it")
    boot_id: str = Field(alias="bootId", description="tells this boot from every other")
    iommu: Iommu
    gpus: dict[str, GpuOutput]
    nvidia: NvidiaOutput | None = Field(None, description="the driver on the host itself; null: not of this stack")


class VmOutput(_OutputPart):
    """A VM of this stack."""

    host: str = Field(description="by its name in `hosts`")
    node: str
    vmid: WholeNumber
    name: str = Field(description="its name in Proxmox VE")
    state: Literal["running", "stopped"] = Field(description="as the last change left it")
    gpus: list[str] = Field(description="cards, by their names in the host's gpus")
    address: str | None = Field(None, description="where the guest is reached, if it is known")
    nvidia: NvidiaOutput | None = Field(None, description="the driver in the guest; null: not of this stack")


class ContainerOutput(_OutputPart):
    """A container of this stack, which shares cards with the host's driver."""

    host: str = Field(description="by its name in `hosts`")
    node: str
    ctid: WholeNumber
    name: str = Field(description="its name in Proxmox VE")
    state: Literal["running", "stopped", "unknown"] = Field(description="as the last change left it")
    gpus: list[WholeNumber] = Field(description="the numbers of its cards of NVIDIA's: N of /dev/nvidiaN")
    addresses: list[str] = Field(description="where these cards are on the host's PCI bus, such as 0000:01:00.0")
    cards: dict[str, list[str]] = Field(
        description="its cards of other makers, by their names in the host's gpus -> their nodes, such as "
        "/dev/dri/renderD128",
    )
    nodes: list[str] = Field(description="devices that were opened in it; none where it was off")
    method: Literal["device", "mount-entry", "mixed"] | None = Field(
        None, description="how its configuration gives it the devices; null: it has none"
    )
    nvidia: NvidiaOutput | None = Field(None, description="the driver's libraries in it; null: not of this stack")


class Outputs(_OutputPart):
    """All outputs of a stack."""

    version: WholeNumber = Field(description="of the contract", json_schema_extra={"const": VERSION})
    hosts: dict[str, HostOutput]
    vms: dict[str, VmOutput]
    containers: dict[str, ContainerOutput]
    result: list[str] = Field(description="what the last `up` has come to, in lines for people; not for programs")


def schema() -> dict[str, Any]:
    """The JSON schema of the outputs."""
    return Outputs.model_json_schema(by_alias=True)


def text() -> str:
    """What docs/outputs.schema.json holds."""
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema()}, indent=2) + "\n"


def consumed(stack: str, values: Mapping[str, object]) -> Outputs:
    """The outputs of another stack, for a program that takes them by a StackReference.

    :param stack: its name, for messages.
    :param values: its outputs.
    :raises HomelabError: they are of another version, or don't fit the models.
    """
    version = values.get("version")
    if version != VERSION:
        there = f"no `version`; there is {', '.join(sorted(values)) or 'nothing'}"
        raise HomelabError(
            wanted=f"version {VERSION} of a homelab stack's outputs from {stack}",
            found=there if version is None else f"version {_whole(version)!r}",
            why="it isn't known which cards there are, or something in them means something else: a card might be "
            "taken from where it must not be",
            next=f"run `pulumi up` in {stack} to its end, with the same checkout of homelab as this program's; or "
            "correct the stack's name",
        )
    try:
        return Outputs.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        raise HomelabError(
            wanted=f"the outputs of {stack} as version {VERSION} has them (docs/outputs.schema.json)",
            found="\n        ".join(problems),
            why="this program would work with half of what it has to know",
            next=f"run `pulumi up` in {stack} with this checkout of homelab",
        ) from None


def without_nulls(value: Any) -> Any:
    """A value without keys whose value is null. A missing key means the same, and a preview knows of it."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[1] / "docs" / "outputs.schema.json"
    path.write_text(text(), encoding="utf-8", newline="\n")
    print(f"written: {path}")
