"""A stand-in of the engine in the test's process: it keeps a stack's state and turns a run of the program into steps, in the order of the program.

What a step is, and what it does, is the program's own: `__main__.py` registers, the provider compares, reads, makes and changes, commands run on
a simulated host. Of the engine there are its plan alone, a step at a time: what differs is updated, replaced, or made; what isn't registered
any more is deleted; a step that fails ends the run. The real one: tests/e2e.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import re
import runpy
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pulumi
import yaml
from pulumi.runtime.mocks import MockMonitor
from pulumi.runtime.proto import provider_pb2, resource_pb2
from pulumi.runtime.stack import run_pulumi_func

from homelab import text
from homelab.errors import UnfinishedError
from homelab.provider import serve
from homelab.resources import kept_agent
from homelab.resources.command import HOLD
from homelab.resources.work.plain import UNKNOWN, Properties, plain, valued
from lab import Lab
from tests import connections, forked_agent
from tests.conftest import PROJECT
from tests.lab.stack_kit import shell

PROJECT_NAME, STACK = "homelab", "lab"
COMMAND = "command:remote:Command"


class KilledError(Exception):
    """The run was killed here."""


@dataclass
class Kept:
    """A resource as the state has it. `is_unfinished`: its last step has failed, so it is updated in any case."""

    urn: str
    type: str
    inputs: Properties
    outputs: Properties
    is_unfinished: bool = False

    @property
    def name(self) -> str:
        return self.urn.rpartition("::")[2]


@dataclass
class Run:
    """What came of a run. `drifted`: the resources that the refresh found other than they were; `steps`: (operation, name), in their order;
    `told`: what a person saw, the first `told_by_refresh` texts from the refresh; `error`: why it ended."""

    drifted: list[str] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    told_by_refresh: int = 0
    error: Exception | None = None

    @property
    def refused(self) -> str:
        return str(self.error) if self.error else ""


class InProcess:
    """A stack on a lab.

    :param folder: its project's: Pulumi.yaml and the stack's file, as the commands read it.
    """

    def __init__(self, lab: Lab, folder: Path, config: dict[str, Any], project: str = PROJECT_NAME) -> None:
        self.lab, self.folder, self.config, self.project = lab, folder, config, project
        self.state: dict[str, Kept] = {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Pulumi.yaml").write_text(f"name: {project}\nruntime: python\n")
        self.write()

    @property
    def file(self) -> Path:
        return self.folder / f"Pulumi.{STACK}.yaml"

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump({"config": {f"homelab:{key}": one for key, one in self.config.items()}}))

    def preview(self) -> Run:
        return self._ran(dry=True, refresh=True)

    def up(self, *, refresh: bool = True, killed_after: int | None = None) -> Run:
        """:param killed_after: so many steps; the last one's end isn't in the state any more."""
        run = self._ran(dry=False, refresh=refresh, killed_after=killed_after)
        assert killed_after is None or run.error, f"it had come to its end: {run.steps}"
        return run

    def _ran(self, *, dry: bool, refresh: bool, killed_after: int | None = None) -> Run:
        engine = _Engine(self, dry=dry, killed_after=killed_after)
        with _told(engine.run.told):
            try:
                if refresh:
                    engine.refresh()
                engine.run.told_by_refresh = len(engine.run.told)
                engine.run_the_program()
                if engine.run.error is None:
                    engine.delete_the_rest()
            except Exception as error:
                engine.run.error = engine.run.error or error
        if not dry:
            self.state = engine.state
        connections.end_all()  # as the end of the provider's process
        return engine.run


@contextmanager
def _told(lines: list[str]) -> Iterator[None]:
    text.shown_by(lambda said, *, meanwhile: None if meanwhile else lines.append(said))
    try:
        yield
    finally:
        text._shown_by().pop()


class _Engine(MockMonitor):
    """One run."""

    def __init__(self, stack: InProcess, *, dry: bool, killed_after: int | None) -> None:
        self.stack, self.dry, self.left = stack, dry, killed_after
        self.state = copy.deepcopy(stack.state)
        self.run, self.registered = Run(), set[str]()
        self._step = threading.Lock()
        self._provider = serve.Homelab()
        texts = {key: json.dumps(one) if not isinstance(one, str) else one for key, one in stack.config.items()}
        self._texts = texts
        checked = self._answer(self._provider.check_config(provider_pb2.CheckRequest(news=valued(texts))))
        self._answer(self._provider.configure(provider_pb2.ConfigureRequest(args=checked.inputs)))

    # -- its own work ----------------------------------------------------------------------------------------------
    def refresh(self) -> None:
        for kept in [*self.state.values()]:
            if not kept.type.startswith("homelab:"):
                continue
            request = provider_pb2.ReadRequest(
                urn=kept.urn, id="id", properties=valued(kept.outputs), inputs=valued(kept.inputs)
            )
            answer = self._answer(self._provider.read(request))
            outputs = plain(answer.properties) if answer.id else None
            if outputs is None:
                del self.state[kept.urn]
                self.run.drifted.append(kept.name)
            elif outputs != kept.outputs:
                self.run.drifted.append(kept.name)
                kept.outputs = outputs

    def run_the_program(self) -> None:
        kept_agent._of_way.cache_clear()
        values = {f"homelab:{key}": one for key, one in self._texts.items()} | {"homelab:allowPlainSecrets": "true"}
        os.environ["PULUMI_CONFIG"] = json.dumps(values)
        interrupt = signal.getsignal(signal.SIGINT)
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        # Of a run that has failed, what waited for its outputs is nobody's any more.
        loop.set_exception_handler(lambda *_: None)
        try:
            pulumi.runtime.set_mocks(_NoMocks(), self.stack.project, STACK, preview=self.dry, monitor=self)
            with mock.patch.object(gc, "freeze"):  # this process doesn't end with the program
                loop.run_until_complete(run_pulumi_func(_run_main))
        except Exception as error:
            self.run.error = self.run.error or error
        finally:
            del os.environ["PULUMI_CONFIG"]
            pulumi.runtime.settings.reset_options()
            loop.run_until_complete(loop.shutdown_default_executor())
            asyncio.set_event_loop(None)
            loop.close()
            signal.signal(signal.SIGINT, interrupt)

    def delete_the_rest(self) -> None:
        for kept in reversed([*self.state.values()]):
            if kept.urn not in self.registered:
                self.run.steps.append(("delete", kept.name))
                self._delete(kept)

    # -- what the program asks for ---------------------------------------------------------------------------------
    def GetDeploymentInfo(self, request: Any) -> Any:
        # Without secrets, values come and go as they are.
        return resource_pb2.DeploymentInfo(supportedFeatures=[resource_pb2.RESOURCE_MONITOR_FEATURE_ALIAS_SPECS])

    def make_urn(self, parent: str, type_: str, name: str) -> str:
        # Of the run: in a thread of the SDK's, the runtime's own settings aren't known.
        return f"urn:pulumi:{STACK}::{self.stack.project}::{type_}::{name}"

    def RegisterResource(self, request: Any) -> Any:
        urn = self.make_urn(request.parent, request.type, request.name)
        if not request.custom:
            return resource_pb2.RegisterResourceResponse(urn=urn)
        with self._step:
            if self.run.error:
                raise self.run.error
            try:
                outputs = self._stepped(urn, request.type, plain(request.object), [*request.ignoreChanges])
            except Exception as error:
                self.run.error = error
                raise
        return resource_pb2.RegisterResourceResponse(urn=urn, id="id", object=valued(outputs))

    def _stepped(self, urn: str, kind: str, inputs: Properties, ignored: list[str]) -> Properties:
        self.registered.add(urn)
        kept = self.state.get(urn)
        _ignore(inputs, kept.inputs if kept else {}, ignored)
        if kind.startswith("homelab:"):
            request = provider_pb2.CheckRequest(urn=urn, olds=valued(kept.inputs if kept else {}), news=valued(inputs))
            inputs = plain(self._answer(self._provider.check(request)).inputs)
        operation = self._operation(kept, urn, kind, inputs)
        if operation == "same" and kept is not None:
            kept.inputs = inputs
            return kept.outputs
        self.run.steps.append((operation, urn.rpartition("::")[2]))
        if operation != "update" and kept is not None:
            if kind == COMMAND and kept.inputs.get("delete"):
                self._delete(kept)
            del self.state[urn]
            kept = None
        outputs = self._made(kept, urn, kind, inputs)
        if self.left is not None and not self.dry:
            self.left -= 1
            if self.left <= 0:
                raise KilledError
        if not self.dry:
            self.state[urn] = Kept(urn, kind, inputs, outputs)
        return outputs

    def _operation(self, kept: Kept | None, urn: str, kind: str, inputs: Properties) -> str:
        if kept is None:
            return "create"
        if kind == COMMAND:
            differs = {key for key in {*inputs, *kept.inputs} if inputs.get(key) != kept.inputs.get(key)}
            return "replace" if "triggers" in differs else "update" if differs or kept.is_unfinished else "same"
        request = provider_pb2.DiffRequest(urn=urn, id="id", olds=valued(kept.outputs), news=valued(inputs))
        answer = self._answer(self._provider.diff(request))
        if answer.replaces:
            return "replace"
        is_some = answer.changes == provider_pb2.DiffResponse.DIFF_SOME
        return "update" if is_some or kept.is_unfinished else "same"

    def _made(self, kept: Kept | None, urn: str, kind: str, inputs: Properties) -> Properties:
        if kind == COMMAND:
            if self.dry:
                return {**inputs, "stdout": UNKNOWN, "stderr": UNKNOWN}
            return {**inputs, **self._command(inputs, "create")}
        try:
            if kept is None:
                create = provider_pb2.CreateRequest(urn=urn, properties=valued(inputs), preview=self.dry)
                return self._properties(self._provider.create(create))
            update = provider_pb2.UpdateRequest(
                urn=urn, id="id", olds=valued(kept.outputs), news=valued(inputs), preview=self.dry
            )
            return self._properties(self._provider.update(update))
        except UnfinishedError as error:
            self.state[urn] = Kept(urn, kind, inputs, plain(valued(error.state)), is_unfinished=True)
            raise

    def _delete(self, kept: Kept) -> None:
        if not self.dry:
            if kept.type != COMMAND:
                request = provider_pb2.DeleteRequest(urn=kept.urn, id="id", properties=valued(kept.outputs))
                self._answer(self._provider.delete(request))
            elif kept.inputs.get("delete"):
                self._command(kept.inputs, "delete")
        self.state.pop(kept.urn, None)

    def _command(self, inputs: Properties, verb: str) -> Properties:
        """What pulumi-command does, by the agent that is kept there; before a step on the host, what the program's hooks do (homelab/resources/command.py)."""
        lab = self.stack.lab
        of_host, asked = inputs["connection"]["host"] == lab.connection["host"], inputs["stdin"]
        if verb == "create":
            if of_host:
                self._hold(None if inputs.get("create") else json.loads(asked)["input"]["owner"])
            if not inputs.get("create"):
                return {"stdout": "", "stderr": ""}  # the hook, or NvidiaSystem, has put it there
        environment = lab.machine.environment()
        kept = lab.root / re.findall(r'"\$HOMELAB_ROOT"/?(\S+agent\.pyz)', inputs[verb])[0].lstrip("/")
        if of_host and kept.exists() and kept.stat().st_size:
            do = {"create": "apply", "delete": "revert"}[verb]
            done = forked_agent.answered(environment, do, json.loads(asked)["layer"], asked.encode(), Path("/"))
        else:
            done = subprocess.run(
                ["bash", "-c", inputs[verb]] if of_host else [*shell(lab, 103), inputs[verb]],
                input=asked,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        self.run.told += done.stderr.splitlines()
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}: {done.stdout}{done.stderr}")
        return {"stdout": done.stdout.rstrip("\n"), "stderr": done.stderr.rstrip("\n")}

    def _hold(self, owner: str | None) -> None:
        (name,) = json.loads(self._texts["hosts"])  # the one host
        asked = valued({"host": name, "owner": owner})
        self._answer(self._provider.invoke(provider_pb2.InvokeRequest(tok=HOLD, args=asked)))

    def _properties(self, call: Any) -> Properties:
        found: Properties = plain(self._answer(call).properties)
        return found

    @staticmethod
    def _answer(call: Any) -> Any:
        return asyncio.run(call)


class _NoMocks(pulumi.runtime.Mocks):
    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        raise AssertionError(args.name)

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise AssertionError(args.token)


def _run_main() -> None:
    runpy.run_path(str(PROJECT / "__main__.py"))


def _ignore(inputs: Properties, before: Properties, ignored: list[str]) -> None:
    for path in ignored:
        folder, _, last = path.rpartition(".")
        new, old = (inputs[folder], before.get(folder, {})) if folder else (inputs, before)
        if before and last in old:
            new[last] = old[last]
