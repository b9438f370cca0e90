"""homelab/provider: how properties differ, what that leads to, and that declarations, work and what the engine sends fit each other."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import copy
import dataclasses
import inspect
import itertools
import json
import re
import sys
import tarfile
import time
from collections.abc import Iterator
from types import SimpleNamespace, UnionType
from typing import IO, Any, Literal, cast, get_args, get_origin, get_type_hints

import grpc
import pytest
from pulumi.runtime import rpc
from pulumi.runtime.proto import provider_pb2, status_pb2
from pulumi.runtime.rpc import UNKNOWN as SENTINEL

from homelab import earlier, shapes, stack
from homelab.cards.resource import CardMapping
from homelab.container.resource import ContainerProbe
from homelab.errors import HomelabError, UnfinishedError
from homelab.host import plan
from homelab.host.resource import BootVerification, HostProbe
from homelab.host.work import HostProbeWork
from homelab.nvidia.resource import NvidiaVerification
from homelab.provider import registry, serve
from homelab.provider.difference import differences, top
from homelab.provider.registry import work_of
from homelab.provider.serve import Homelab, with_its_state
from homelab.remote import logins, ssh
from homelab.remote.host_session import HostSession
from homelab.resources import command
from homelab.resources.base import Resource, declared
from homelab.resources.work.base import Work, raised, read_as, stopped_by_reboot
from homelab.resources.work.plain import UNKNOWN, plain, valued
from homelab.settings import Container, Host
from homelab.shapes import BootSeen
from homelab.vm.resource import VmCards
from tests.conftest import PROJECT
from tests.rows import rows
from tests.unit.hosts import NO_PLAN, VM_CARDS, desktop, settings


def sent(properties: Any) -> Any:
    """Properties as they come out of a message of the protocol."""
    return plain(provider_pb2.CreateRequest(properties=valued(properties)).properties)


# -- values -----------------------------------------------------------------------------------------------------
@rows("value", [None, True, "text", 1.5, 7, [1, [2]], {"a": {"b": [None, False]}}, {}])
def test_what_goes_to_the_engine_comes_back_the_same(value: Any) -> None:
    """A whole number, as the same type, too."""
    assert (found := sent({"value": value})) == {"value": value} and type(found["value"]) is type(value)


def test_a_secret_of_the_providers_own_inputs_is_its_value() -> None:
    secret = {rpc._special_sig_key: rpc._special_secret_sig, "value": "hosts"}
    assert sent({"hosts": secret, "plan": "auto"}) == {"hosts": "hosts", "plan": "auto"}


def test_what_a_preview_does_not_know_is_equal_to_nothing() -> None:
    found = sent({"a": UNKNOWN, "b": [UNKNOWN]})
    assert found["a"] is UNKNOWN and found["a"] != found["b"][0]
    assert valued(UNKNOWN) == SENTINEL


def test_properties_become_the_declared_types_and_back() -> None:
    inputs = read_as(VmCards.Inputs, VM_CARDS | {"record": {"of": "outputs"}})
    assert inputs.boot == BootSeen(id="b", stopped=[103], at=7)
    assert inputs.shutdown.timeout == 1 and inputs.machine is None
    assert dataclasses.asdict(inputs) == VM_CARDS | {"machine": None, "address": None}


def test_a_card_without_an_iommu_group_is_read_as_one() -> None:
    card = {"name": "", "keep": False, "slot": "0000:01:00", "path": "0000:01:00", "use": "vm", "functions": []}
    properties = NO_PLAN | {"gpus": {"a": card}, "generation": {}}
    assert read_as(HostProbe.Outputs, properties).gpus == {"a": card}


# -- differences ------------------------------------------------------------------------------------------------
@rows(
    ("old", "new", "found"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1, "b": None}, {"a": 1, "c": None}, {}),
        ({"a": 1}, {}, {"a": "delete"}),
        ({}, {"a": 1}, {"a": "add"}),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3, 4]}}, {"a.b[1]": "update", "a.b[2]": "add"}),
        ({"a": [1, 2]}, {"a": [1]}, {"a[1]": "delete"}),
        ({"a": 1}, {"a": True}, {"a": "update"}),
        ({"a": {}}, {"a": "x"}, {"a": "update"}),
        ({"f": {"0000:01:00.0": "x"}}, {"f": {"0000:01:00.0": "y"}}, {'f["0000:01:00.0"]': "update"}),
        ({"a": {"b": 1}}, {"a": UNKNOWN}, {"a": "update"}),
        ({}, {"a": UNKNOWN}, {"a": "add"}),
    ],
)
def test_a_difference_is_named_by_its_place(old: Any, new: Any, found: dict[str, str]) -> None:
    assert differences(old, new) == found


@pytest.mark.parametrize(
    ("state", "said"),
    [({"plan": "auto"}, "homelab 1.0.0"), ({"states": "2"}, "a commit after it"), (earlier.STATES, "")],
)
def test_a_state_that_this_version_cant_give_back_is_refused(state: dict[str, str], said: str) -> None:
    async def asked() -> None:
        await Homelab().diff_config(provider_pb2.DiffRequest(olds=state, news=earlier.STATES))

    with pytest.raises(HomelabError, match=said) if said else contextlib.nullcontext():
        asyncio.run(asked())


def diffed(resource: type[Resource], state: dict[str, Any], inputs: dict[str, Any]) -> provider_pb2.DiffResponse:
    """What the engine is told."""

    async def asked() -> provider_pb2.DiffResponse:
        provider = Homelab()
        await provider.configure(provider_pb2.ConfigureRequest(args=earlier.STATES))
        urn = f"urn:pulumi:stack::homelab::homelab:gpu:GpuVm${resource.token()}::name"
        return await provider.diff(provider_pb2.DiffRequest(urn=urn, olds=valued(state), news=valued(inputs)))

    return asyncio.run(asked())


def replaced(resource: type[Resource], state: dict[str, Any], inputs: dict[str, Any]) -> list[str] | None:
    """The properties by which it is replaced; None: nothing is to be done."""
    response = diffed(resource, state, inputs)
    return list(response.replaces) if response.changes == provider_pb2.DiffResponse.DIFF_SOME else None


def test_what_a_refresh_found_asks_for_an_update() -> None:
    state = {"host": "pve", "settings": "a", "generation": {"vfio": 1}, "stale": False}
    inputs = {"host": "pve", "settings": "a"}
    assert replaced(HostProbe, state, inputs) is None
    assert (
        replaced(HostProbe, {**state, "stale": True}, inputs)
        == replaced(HostProbe, state, {**inputs, "settings": "b"})
        == []
    )
    entry = {"host": "pve", "node": "pve", "mapping": "m", "entry": {}}
    assert replaced(CardMapping, {**entry, "drift": []}, entry) is None
    assert replaced(CardMapping, {**entry, "drift": ["another"]}, entry) == []


def test_an_act_is_done_again_unless_only_ignored_inputs_change() -> None:
    inputs = {"host": "pve", "facts": {"running": "6.8"}, "timeout": 1}
    state = {**inputs, "result": {"driver": "1"}}
    assert replaced(NvidiaVerification, state, inputs) is None
    assert replaced(NvidiaVerification, state, {**inputs, "timeout": 2}) is None
    assert replaced(NvidiaVerification, state, {**inputs, "host": "other", "timeout": 2}) == ["host"]
    assert replaced(NvidiaVerification, state, {**inputs, "host": UNKNOWN}) == ["host"]


def test_a_boot_is_verified_again_unless_no_reboot_was_needed() -> None:
    inputs = {"host": "pve", "iommu_words": "", "vfio_words": "", "functions": {}, "gpus": {}, "generation": {}}
    state = {**inputs, "reboot": '{"reboot":"yes","boot_id":"1","reasons":[],"guests":""}'}
    none = '{"reboot":"no","boot_id":"2","reasons":[],"guests":""}'
    assert replaced(BootVerification, state, {**inputs, "reboot": none}) is None
    assert replaced(BootVerification, state, {**inputs, "reboot": none, "vfio_words": "x"}) == ["vfio_words"]
    for other in (none.replace("no", "yes"), none.replace("no", "manual")):
        assert replaced(BootVerification, state, {**inputs, "reboot": other}) == ["reboot"]
    for key, new in (("generation", {"vfio": 1}), ("reboot", UNKNOWN), ("gpus", {"a": {}})):
        assert replaced(BootVerification, state, {**state, key: new}) == [], "it is verified again"


def test_another_vm_is_another_resource_and_the_old_one_goes_first() -> None:
    response = diffed(VmCards, {"vmid": 103, "power": "keep", "record": {}}, {"vmid": 104, "power": "running"})
    assert response.replaces == ["vmid"] and response.deleteBeforeReplace
    assert {path: diff.kind for path, diff in response.detailedDiff.items()} == {
        "vmid": provider_pb2.PropertyDiff.UPDATE_REPLACE,
        "power": provider_pb2.PropertyDiff.UPDATE,
    }


# -- keys that a state doesn't have yet ---------------------------------------------------------------------------
def example(kind: Any) -> Any:
    """A value of a declared type, as a state has it."""
    parts = get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return {name: example(of_key) for name, of_key in get_type_hints(kind).items()}
    if get_origin(kind) is Literal:
        return parts[-1]
    if get_origin(kind) in (list, tuple):
        return [example(parts[0])]
    if get_origin(kind) is UnionType:
        return example(parts[0])
    return {bool: True, int: 7, dict: {"a": "b"}}.get(get_origin(kind) or kind, "x")


def defaults(kind: type[Any], *place: str | int) -> Iterator[tuple[tuple[str | int, ...], Any, Any]]:
    """Each key of a declared type that has a default, also further inside: where it is, its default, another value."""
    for field in dataclasses.fields(kind):
        of_key = get_type_hints(kind)[field.name]
        here, inner = (
            (*place, field.name),
            [one for one in (of_key, *get_args(of_key)) if dataclasses.is_dataclass(one)],
        )
        is_list = get_origin(of_key) is list
        if field.default_factory is not dataclasses.MISSING:
            yield here, field.default_factory(), example(of_key)
        elif field.default is not dataclasses.MISSING:
            default = dataclasses.asdict(field.default) if inner and field.default else field.default
            yield here, default, not default if of_key is bool else example(of_key)
        for part in inner:
            yield from defaults(cast(type[Any], part), *here, *([0] if is_list else []))


def with_value(values: Any, place: tuple[str | int, ...], *value: Any) -> Any:
    """The same with a value at a place; without one the key isn't there."""
    changed = inside = copy.deepcopy(values)
    for key in place[:-1]:
        inside = inside[key]
    if value:
        inside[place[-1]] = value[0]
    else:
        del inside[place[-1]]
    return changed


KEYS = [
    (resource, *key)
    for resource in declared().values()
    for key in defaults(resource.Inputs)
    if key[0][0] not in resource.ignored
]


@pytest.mark.parametrize(
    ("resource", "place", "default", "other"),
    KEYS,
    ids=lambda value: (
        getattr(value, "__name__", None) or (".".join(map(str, value)) if isinstance(value, tuple) else "")
    ),
)
def test_a_state_without_a_key_is_as_one_with_the_keys_default(
    resource: type[Resource], place: tuple[str | int, ...], default: Any, other: Any
) -> None:
    usual = example(resource.Inputs)
    without, at_default, at_another = (with_value(usual, place, *value) for value in ([], [default], [other]))
    for state, inputs in itertools.permutations((without, at_default), 2):
        assert replaced(resource, state, inputs) is None
    for state in (without, at_default):
        assert {top(path) for path in diffed(resource, state, at_another).detailedDiff} == {place[0]}
        assert {top(path) for path in diffed(resource, at_another, state).detailedDiff} == {place[0]}


@pytest.mark.parametrize("name", ["rtx5090", "phoenix"])
def test_a_key_that_the_state_of_2_1_0_lacks_changes_nothing(name: str) -> None:
    with tarfile.open(PROJECT / f"tests/e2e/released/2.1.0-{name}.tar.gz") as kept:
        state = json.load(cast(IO[bytes], kept.extractfile("state.json")))
    own = [one for one in state["deployment"]["resources"] if one["type"] in declared()]
    lacking = 0
    for one in own:
        resource = declared()[one["type"]]
        assert replaced(resource, one["outputs"], one["inputs"]) is None
        for place, default, _ in defaults(resource.Inputs):
            with contextlib.suppress(KeyError):
                older, now = with_value(one["outputs"], place), with_value(one["inputs"], place, default)
                assert replaced(resource, older, now) is None, place
                lacking += 1
    assert len(own) > 3 and lacking > 3


# -- declarations -----------------------------------------------------------------------------------------------
def test_an_import_is_refused_with_what_to_do_instead() -> None:
    """`pulumi import` reads a resource of which there is nothing but an id."""
    request = provider_pb2.ReadRequest(urn="urn:pulumi:stack::homelab::homelab:host:Probe::pve", id="pve")
    with pytest.raises(HomelabError, match=r"imported as homelab:host:Probe[^§]*run `pulumi up`"):
        asyncio.run(Homelab().read(request))


def test_every_resource_that_is_declared_has_its_work() -> None:
    for resource in declared().values():
        assert resource.__module__.split(".")[1] in registry.SUBJECTS  # the provider imports no other declarations
        assert work_of(resource).resource is resource


@rows("resource", declared().values(), ids=lambda one: one.__name__)
def test_outputs_of_a_resource_are_what_its_work_puts_out(resource: type[Resource]) -> None:
    outputs = {field.name for field in dataclasses.fields(resource.Outputs)}
    inputs = {field.name for field in dataclasses.fields(resource.Inputs)}
    assert not outputs & inputs
    seen = set(resource.__dict__.get("__annotations__", {}))
    assert seen <= outputs | inputs
    assert resource.replaced_by | resource.ignored <= inputs
    # Null in the state is what a preview after a refresh doesn't know.
    assert not [field.name for field in dataclasses.fields(resource.Outputs) if "None" in str(field.type)]
    types = {
        field.name: field.type for kind in (resource.Inputs, resource.Outputs) for field in dataclasses.fields(kind)
    }
    assert {name: resource.__annotations__[name] for name in seen} == {
        name: f"pulumi.Output[{types[name]}]" for name in seen
    }
    # One with a default, for the states of earlier versions, would be forgotten in silence.
    for call in ast.walk(ast.parse(inspect.getsource(sys.modules[work_of(resource).__module__]))):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{resource.__name__}.Outputs":
            given = {one.arg for one in call.keywords}
            assert not given or None in given or given | {"drift"} == outputs | {"drift"}, f"line {call.lineno}"


def test_an_input_that_is_forgotten_is_named_before_anything_runs() -> None:
    with pytest.raises(
        TypeError, match=r"HostProbe pve-probe: inputs that are missing or not known: \['setings', 'settings'\]"
    ):
        HostProbe("pve-probe", host="pve", setings="")


def test_every_layer_that_a_component_names_can_drift() -> None:
    texts = [
        path.read_text(encoding="utf-8") for path in (PROJECT / "__main__.py", *(PROJECT / "components").glob("*.py"))
    ]
    named = {name for text in texts for name in re.findall(r'(?:generation_of\(|drifted=)"(\w+)"', text)}
    layers = plan.drift(desktop(), plan.wanted(desktop(), settings())).keys()
    assert {*shapes.BOOT_LAYERS, *named} == {*layers, "agent"}  # which isn't planned


def test_a_layer_that_an_older_state_has_not_counts_from_nothing() -> None:
    assert raised({"iommu": 2, "gone": 5}, {"vfio"}, ("iommu", "vfio", "boot")) == {"iommu": 2, "vfio": 1, "boot": 0}


# -- probes -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("probed", "mode", "changed", "shown"),
    [
        (True, "auto", 2, ["pve"]),
        (True, "auto", 0, []),
        (True, "always", 0, ["pve"]),
        (True, "always", 1, ["pve"]),
        (False, "auto", 2, []),
    ],
)
def test_a_preview_shows_the_plan_once_of_a_host_that_has_a_probe_and_changes(
    monkeypatch: pytest.MonkeyPatch, probed: bool, mode: str, changed: int, shown: list[str]
) -> None:
    plans: list[str] = []
    monkeypatch.setattr(HostProbeWork, "show_plan", lambda self, host, *_: plans.append(host))

    async def asked() -> None:
        provider = Homelab()
        await provider.configure(provider_pb2.ConfigureRequest(args={"plan": mode, **earlier.STATES}))
        urn, inputs = "urn:pulumi:stack::homelab::homelab:{}::pve", {"host": "pve", "settings": ""}
        if probed:
            properties = {**inputs, "preview": True}
            answer = await provider.check(provider_pb2.CheckRequest(urn=urn.format("host:Probe"), news=properties))
            assert plain(answer.inputs) == inputs
        for _ in range(changed):
            await provider.create(
                provider_pb2.CreateRequest(urn=urn.format("vm:Cards"), properties=inputs, preview=True)
            )

    asyncio.run(asked())
    assert plans == shown


def test_a_host_is_held_for_a_step_of_pulumi_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    async def reach(host: Host) -> None:
        done.append(("reached", host))

    monkeypatch.setattr(HostSession, "hold", lambda _, host: done.append(("held", host)))
    monkeypatch.setattr(logins, "reach", reach)
    monkeypatch.setattr(ssh.Session, "put_agent", lambda session, owner, _: done.append((owner, session._host)))
    monkeypatch.setattr("homelab.resources.work.base.load_host", lambda *_: settings())
    asyncio.run(Homelab().invoke(provider_pb2.InvokeRequest(tok=command.HOLD, args={"host": "pve"})))
    ready = [("held", settings()), ("reached", settings())]
    assert done == ready
    asked = provider_pb2.InvokeRequest(tok=command.HOLD, args={"host": "pve", "owner": "homelab-lab-pve"})
    asyncio.run(Homelab().invoke(asked))
    assert done == [*ready, *ready, ("homelab-lab-pve", settings())]


@pytest.mark.parametrize("changed", [{"agent": "2-b"}, {"guests": "c"}, {"settings": "b"}])
def test_whatever_changes_asks_the_gates_again_and_a_preview_that_reads_no_host_shows_what_it_knows(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]
) -> None:
    inputs = {"host": "pve", "settings": "a", "agent": "2-a", **changed}
    planned = NO_PLAN | {"iommu_words": "iommu=pt"}
    # A state of 2.0.0, which knows no guests.
    state = {"host": "pve", "settings": "a", "agent": "2-a", **planned, "generation": {"vfio": 1}}
    urn = "urn:pulumi:stack::homelab::homelab:host:Probe::pve-probe"
    request = provider_pb2.UpdateRequest(urn=urn, olds=state, news=inputs, preview=True)
    shown = plain(asyncio.run(Homelab().update(request)).properties)
    of_plan = dict.fromkeys(planned, UNKNOWN) if "settings" in changed else planned
    assert shown == {**inputs, **of_plan, "generation": {"vfio": 1}}

    def plan_again(_: HostProbeWork, inputs: HostProbe.Inputs, generation: Any, *_before: str) -> HostProbe.Outputs:
        return HostProbe.Outputs(**planned | {"vfio_words": f"planned of {inputs.host}"}, generation=generation)

    monkeypatch.setattr(HostProbeWork, "_plan", plan_again)
    monkeypatch.setattr(HostProbeWork, "hold_or_fail", lambda *_: None)
    assert HostProbeWork({}, urn).updated(state, inputs)["vfio_words"] == "planned of pve"


def test_a_changed_setting_of_a_container_asks_the_gates_again_but_not_whether_it_runs() -> None:
    def told(**changes: Any) -> str:
        plain = {"host": "pve", "ctid": 901, "gpuAssignment": "all"}
        return ContainerProbe.settings_of(Container.model_validate(plain | changes))

    assert told() == told(power="running") != told(nodes="all")


def test_a_type_of_another_version_is_refused_in_words() -> None:
    urn = "urn:pulumi:lab::homelab::homelab:gpu:GpuVm$homelab:vm:Gone::sandbox"
    with pytest.raises(HomelabError, match=r"homelab:vm:Gone.*\n.*no such type"):
        asyncio.run(Homelab().diff(provider_pb2.DiffRequest(urn=urn, id="103")))


# -- work that failed ---------------------------------------------------------------------------------------------
class _Failing(Work[VmCards.Inputs, VmCards.Outputs]):
    resource = VmCards

    def is_held_meanwhile(self, inputs: VmCards.Inputs) -> bool:
        return False

    def create(self, inputs: VmCards.Inputs) -> VmCards.Outputs:
        error = HomelabError(wanted="a", found="b", why="c", next="d")
        error.outputs = VmCards.Outputs(guest_name="Sandbox")
        raise error.retold(found="more")


def test_what_is_known_when_the_work_fails_goes_into_the_state() -> None:
    """As the engine takes it, with the error in four parts as the reason."""
    with pytest.raises(UnfinishedError) as raised:
        _Failing({}).created(VM_CARDS)
    request = provider_pb2.CreateRequest(properties=VM_CARDS)
    ((name, answer),) = with_its_state(raised.value, request)
    failed = provider_pb2.ErrorResourceInitFailed()
    assert name == "grpc-status-details-bin" and status_pb2.Status.FromString(answer).details[0].Unpack(failed)
    assert failed.id == "pve"
    assert failed.properties["guest_name"] == "Sandbox" and failed.properties["vm"] == failed.inputs["vm"] == "sandbox"
    assert "wanted: a\nfound:  more\nwhy:    c\nnext:   d" in failed.reasons[0]


@rows(
    ("vmid", "last_boot", "age", "stopped"),
    [(103, "a", 0, True), (104, "a", 0, False), (103, "b", 0, False), (103, None, 0, True), (103, "a", 3601, False)],
    ids=["it did", "another guest", "seen to since", "never seen to", "long ago"],
)
def test_a_guest_that_this_programs_reboot_has_just_stopped(
    vmid: int, last_boot: str | None, age: int, stopped: bool
) -> None:
    boot = BootSeen(id="b", stopped=[103], at=int(time.time()) - age)
    before = BootSeen(id=last_boot, stopped=[103], at=boot["at"]) if last_boot else None
    assert stopped_by_reboot(vmid, boot, before) is stopped


# -- what the engine asks for ------------------------------------------------------------------------------------
@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of the work on a resource was called."""
    calls: list[str] = []

    class Recorded:
        def __init__(self, *_about: Any) -> None:
            pass

        def created(self, inputs: Any) -> Any:
            calls.append("created")
            return "103", inputs

        def updated(self, _state: Any, inputs: Any) -> Any:
            calls.append("updated")
            return inputs

        def refreshed(self, state: Any) -> Any:
            calls.append("refreshed")
            return None if state.get("vmid") == 104 else state

        def deleted(self, _state: Any) -> None:
            calls.append("deleted")

    monkeypatch.setattr(serve, "work_of", lambda _resource: Recorded)
    return calls


def asked(name: str, vmid: int = 103, *, preview: bool = False) -> Any:
    values = {"vmid": vmid}
    about = {"properties": values, "olds": values, "news": values, "inputs": values, "id": str(vmid)}
    request: Any = SimpleNamespace(urn=f"urn:pulumi:s::p::{VmCards.token()}::a", preview=preview, **about)
    return asyncio.run(getattr(Homelab(), name)(request))


def test_a_preview_does_no_work_and_each_call_does_its_own(called: list[str]) -> None:
    for name in ("create", "update"):
        assert plain(asked(name, preview=True).properties)["state"] is UNKNOWN and not called
    for name in ("create", "read", "update", "delete"):
        asked(name)
    assert called == ["created", "refreshed", "updated", "deleted"]


def test_the_engine_finds_each_call_of_the_provider_under_the_protocols_name() -> None:
    own = {name for name in vars(Homelab) if not name.startswith("_")}
    assert len(vars(serve.servicer())) == len(own) and "GetPluginInfo" in vars(serve.servicer())


@pytest.mark.parametrize(("vmid", "found"), [(103, "103"), (104, "")])
def test_a_refresh_tells_what_is_gone_from_what_is_there(called: list[str], vmid: int, found: str) -> None:
    assert asked("read", vmid).id == found


FAILED = HomelabError(wanted="a", found="b", why="c", next="d")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (FAILED, grpc.StatusCode.FAILED_PRECONDITION, "wanted: a\nfound:  b"),
        (UnfinishedError(FAILED, "103", {}), grpc.StatusCode.FAILED_PRECONDITION, "wanted: a\nfound:  b"),
        (KeyError("x"), grpc.StatusCode.UNKNOWN, "Traceback"),
    ],
)
def test_the_engine_is_told_of_each_failure(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: Any, said: str
) -> None:
    """After UNKNOWN it doesn't know what has become of the resource; with details it keeps what is known of it."""

    async def fails(*_call: Any) -> None:
        raise error

    told: list[Any] = []

    async def abort(*answer: Any) -> None:
        told.append(answer)

    async def call() -> None:
        request, context = provider_pb2.CreateRequest(), SimpleNamespace(abort=abort)
        await serve.answered(fails)(request, context)

    asyncio.run(call())
    ((code, text, *details),) = told
    assert code == status and said in text and bool(details) is isinstance(error, UnfinishedError)


def test_the_program_ends_once_its_engine_is_gone_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = grpc.StatusCode.UNAVAILABLE
    answers = [None, grpc.StatusCode.UNIMPLEMENTED, gone, None, gone, gone]

    def answer(_: object) -> None:
        if status := answers.pop(0):
            error: Any = grpc.RpcError()
            error.code = lambda: status
            raise error

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(stack, "ENGINE_SECONDS", 0.0)
    monkeypatch.setattr("os._exit", end)
    engine: Any = SimpleNamespace(GetRootResource=answer)
    with pytest.raises(SystemExit, match=str(stack.SHOWN)):
        stack._end_with(engine)
    assert answers == []
