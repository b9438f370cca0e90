"""What is proposed and previewed before a repository is read is what the repositories, as the lab has them, then allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest

from homelab.nvidia.checks import cudas_that_fit, drivers_that_fit
from homelab.nvidia.compatibility import Target, load
from homelab.nvidia.plan import Plan, all_refusals, packages_to_ask_for, plan_stack
from homelab.nvidia.request import Request, SystemFacts
from homelab.settings.nvidia import Nvidia
from lab.network import network
from tests.rows import check_rows

DATA = load()
NETWORK = network()
DISTRIBUTIONS = {f"{row.id}-{row.version}": row for row in DATA.packaging.distributions}
SYSTEMS = [(name, target) for name, row in DISTRIBUTIONS.items() for target in row.targets]
# One card of each generation that a maintained branch or the last legacy one knows.
CARDS = {
    generation.name: f"10de:{generation.ranges[-1][0]:04x}"
    for generation in DATA.gpus.generations
    if generation.name not in ("Tesla and older", "Fermi")
}
KERNELS = {"ubuntu": "6.8.0-86-generic", "debian": "6.12.48+deb13-amd64"}


def repositories(name: str, target: Target, plan: Plan) -> Iterable[dict[str, Any]]:
    """Those of a stock system, and those that the plan adds."""
    stock = {("host", "debian-12"): "pve-8.4", ("host", "debian-13"): "pve-9.1"}.get((target, name), name)
    sources = NETWORK["sources"][stock]["text"].split()
    added = [word for repository in plan.repositories for word in repository.line.split()]
    for repository in NETWORK["repositories"]:
        places = {repository["url"], repository["url"] + "/"}
        if places & {*sources} and repository["suite"] in sources or places & {*added}:
            yield repository


def offered(name: str, target: Target, plan: Plan, asked: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The versions of packages in these repositories."""
    groups = [
        NETWORK["groups"][group]["packages"]
        for repository in repositories(name, target, plan)
        for group in repository["groups"]
    ]
    return {
        package: tuple(record["version"] for group in groups for record in group.get(package, ())) for package in asked
    }


def request(
    name: str, target: Target, card: str = CARDS["Ampere"], kernel: str | None = None, **settings: Any
) -> Request:
    row = DISTRIBUTIONS[name]
    kernel = kernel or ("6.17.13-2-pve" if target == "host" else KERNELS[row.id])
    system: dict[str, Any] = {"distribution": row.id, "version": row.version, "cards": (card,)}
    system |= {"kernels": (kernel,), "running": kernel, "architecture": "x86_64"}
    return Request(target, Nvidia.model_validate(settings), SystemFacts(**system), "the.system")


def with_repositories(before: Request, plan: Plan) -> Request:
    """The request once the plan's repositories were read; in a container, that of the host's very version."""
    name = f"{before.system.distribution}-{before.system.version}"
    versions = offered(name, before.target, plan, packages_to_ask_for(before))
    return dataclasses.replace(before, system=dataclasses.replace(before.system, offered=versions))


def in_lab(branch: int) -> bool:
    """Whether the lab has anything of a branch."""
    packages = (records for group in NETWORK["groups"].values() for records in group["packages"].values())
    return any(record["version"].startswith(f"{branch}.") for records in packages for record in records)


@pytest.mark.parametrize(("name", "target"), SYSTEMS)
def test_a_driver_comes_from_where_the_preview_says(name: str, target: Target) -> None:
    def check(branch: int) -> None:
        card = CARDS["Kepler" if branch == 470 else "Turing"]
        before = request(name, target, card, kernel="6.1.0-40-amd64", driver=str(branch))
        if refused := all_refusals(before):
            assert all(error.next and error.found for error in refused)
            return
        plan = plan_stack(before)
        assert plan_stack(with_repositories(before, plan)).source == plan.source

    check_rows(check, [(branch,) for branch in filter(in_lab, DATA.branches)])


@pytest.mark.parametrize(("name", "target"), SYSTEMS)
@pytest.mark.parametrize("card", CARDS)
def test_each_driver_and_cuda_that_init_proposes_can_be_installed(name: str, target: Target, card: str) -> None:
    system = request(name, target, CARDS[card]).system

    def check(branch: str) -> None:
        wanted = dataclasses.replace(system, host_driver=branch) if target == "lxc" else system

        def is_offered(cuda: str | None) -> None:
            settings = {} if target == "lxc" else {"driver": branch}
            before = Request(target, Nvidia.model_validate(settings | {"cuda": cuda}), wanted, "the.system")
            after = plan_stack(with_repositories(before, plan_stack(before)))
            assert not before.driver or after.packages or after.run, "nothing"

        releases = cudas_that_fit(
            Request(target, Nvidia.model_validate({} if target == "lxc" else {"driver": branch}), wanted)
        )
        check_rows(is_offered, [(cuda,) for cuda in (None, *releases)])

    check_rows(
        check, [(branch,) for branch in drivers_that_fit(Request(target, Nvidia(), system)) if in_lab(int(branch))]
    )


LIBRARIES: list[dict[str, Any]] = [{"cudnn": "9"}, {"nccl": True}]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_library_beside_cuda_that_the_preview_passes_is_offered(name: str) -> None:
    def check(cuda: str, library: dict[str, Any]) -> None:
        before = request(name, "vm", CARDS["Turing"], driver="620", cuda=cuda, **library)
        if not all_refusals(before):
            plan_stack(with_repositories(before, plan_stack(before)))

    check_rows(check, [(str(cuda.release), library) for cuda in DATA.cuda.releases for library in LIBRARIES])


def test_debian_13_gets_580_from_the_installer_and_595_from_packages() -> None:
    for target in DISTRIBUTIONS["debian-13"].targets:
        for driver, source in (("580", "run"), ("595", "either" if target == "lxc" else "packages")):
            plan = plan_stack(request("debian-13", target, CARDS["Blackwell"], driver=driver))
            assert (plan.source, bool(plan.packages)) == (source, source != "run"), (target, driver)
            assert source == "packages" or (plan.run and plan.run.sha256)


def test_packages_that_no_repository_has_are_refused_by_what_is_known_of_it() -> None:
    (error,) = all_refusals(request("debian-13", "vm", driver="580", source="packages"))
    assert "have the branches from 590" in error.found and "leave nvidia.source out" in error.next
    # There is no release of 570 whose installer's checksum is known and that is the branch's newest.
    (error,) = all_refusals(request("debian-13", "vm", driver="570"))
    assert "the SHA-256 of NVIDIA's installer 570." in error.wanted
    assert "570" not in drivers_that_fit(Request("vm", Nvidia(), request("debian-13", "vm").system))
    assert drivers_that_fit(Request("host", Nvidia(), request("debian-13", "host").system))[0] == "580"
