"""A layer of a host's agent as a Pulumi resource: pulumi-command's remote Command, set up the same way everywhere."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.runtime.proto.resource_pb2_grpc import ResourceMonitorStub
from pulumi.runtime.settings import get_monitor
from pulumi_command import remote
from pydantic import SecretStr

from homelab.errors import HomelabError
from homelab.later import later
from homelab.remote import agent
from homelab.resources import limits
from homelab.resources.kept_agent import KeptFolder, of_program
from homelab.stack import Refusal

if TYPE_CHECKING:
    from homelab.remote import logins as _logins
    from homelab.settings import Host
else:
    _logins = later("homelab.remote.logins")

# A refused connection, a wrong key and a wrong password are all retried by the plugin; a host that answers does so at
# once.
DIAL_ATTEMPTS = 3
# How long an agent that isn't needed may take to accept a connection.
AGENT_SECONDS = 5.0


@functools.cache
def _ask_the_agent() -> None:
    """Asks the SSH agent, once a run, before anything is changed: one that hangs would hold pulumi-command for ever."""
    try:
        _logins.ask_the_agent()
    except HomelabError as error:
        raise Refusal(error) from None


def _need_no_agent() -> None:
    """Refuses an SSH agent that the environment names and that isn't there: pulumi-command connects to it, and fails
    without it, whatever else there is to log in with.

    :raises Refusal: it isn't there.
    """
    path = os.environ.get("SSH_AUTH_SOCK", "")
    try:
        if path.startswith(r"\\.\pipe"):
            raise OSError("a pipe of Windows' OpenSSH, and no Unix socket")
        if not path or not hasattr(socket, "AF_UNIX"):
            return
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(AGENT_SECONDS)
            agent.connect(path)
    except OSError as error:
        raise Refusal.of(
            wanted=f"no SSH agent named by SSH_AUTH_SOCK, or one that is there: {path}",
            found=str(error),
            why="pulumi-command connects to it before each step, though the settings have another way to log in; "
            "without it every step fails",
            next="unset SSH_AUTH_SOCK in this shell, or start the agent again, then run the same again",
        ) from None


#: What the program asks the provider for.
HOLD = "homelab:host:hold"
# Of pulumi-command's error where a connection has ended before its step (golang.org/x/crypto/ssh, ExitMissingError).
_CUT_OFF = "exited without exit status or exit signal"


def _tell_if_cut_off(failed: pulumi.ErrorHookArgs) -> bool:
    """Tells of a step whose connection has ended what pulumi-command can't know.

    :returns: whether to try again, which the next run does.
    """
    if _CUT_OFF in failed.errors[0]:
        error = HomelabError(
            wanted=f"{failed.name}: the step to its end, over one connection",
            found="the connection was lost in the midst of it",
            why="the network failed, or the host restarted or died. As long as the host runs, what was being installed "
            "goes on there by itself, to its end or its limit; a step that only waited has stopped there",
            next="see that the host is up and answers, then run `pulumi up` again: it finishes what is half done",
        )
        pulumi.log.error(str(error))
    return False


async def _target(host: Host, step: pulumi.ResourceHookArgs) -> Host:
    """Where a step runs, and how it is reached."""
    connected: Any = await pulumi.Output.from_input((step.new_inputs or {})["connection"]).future()
    # As they are by now: the settings may have an output in a secret's place.
    login = {"private_key": connected.get("privateKey"), "password": connected.get("password")}
    known = {key: SecretStr(value) for key, value in login.items() if value and getattr(host.ssh, key) is not None}
    ssh = host.ssh.model_copy(update=known)
    return host.model_copy(update={"address": str(connected["host"]), "ssh": ssh})


@functools.cache
def _with_threads_for_hooks(loop: asyncio.AbstractEventLoop) -> None:
    # Each registration has a thread until its step is done, and Pulumi gives a program four for each step that runs at
    # once. Where all of them wait, a hook's own request would get none, and the run would wait for ever.
    loop.set_default_executor(ThreadPoolExecutor(10_000))


def _around_each(host: Host) -> pulumi.ResourceHookBinding | None:
    """Before a step, the provider is asked to hold the host: where the plan stays, as after a run that failed, it has
    been asked for nothing yet. And it logs in there, as the program itself does in a VM: pulumi-command would wait for
    ever for a host that accepts a connection and says nothing, or for an SSH agent that hangs. (Not before an undo:
    `destroy` runs no program.) Before the step that owns this program's agent there, and that does nothing, it puts the
    agent, which is too large for inputs. After a step that was cut off, the program says so in its own words.

    :returns: None in a preview, which does no step, and where no engine listens (a test's mocks).
    """
    if pulumi.runtime.is_dry_run() or not isinstance(get_monitor(), ResourceMonitorStub):
        return None
    if (commands := of_program(host)).hooks is not None:
        return commands.hooks

    _with_threads_for_hooks(asyncio.get_running_loop())

    async def reach(step: pulumi.ResourceHookArgs) -> None:
        if commands.kept is not None:
            asked = {"host": host.name, "owner": None if "create" in (step.new_inputs or {}) else commands.kept.owner}
            await pulumi.runtime.invoke_async(HOLD, asked, pulumi.InvokeOptions(parent=commands.kept.after))
            return
        await _logins.reach_for_a_step(await _target(host, step))

    before: list[Any] = [pulumi.ResourceHook(f"reach {commands.way}", reach)]
    after = [pulumi.ErrorHook(f"tell if cut off {commands.way}", _tell_if_cut_off)]
    commands.hooks = pulumi.ResourceHookBinding(before_create=before, before_update=before, on_error=after)
    return commands.hooks


def connection(host: Host, address: pulumi.Input[str] | None = None) -> tuple[remote.ConnectionArgs, list[str]]:
    """How pulumi-command reaches `host`, and the inputs to ignore changes of.

    A preview in a pull request has no private key. It needs none, and the key that the state knows must not look
    changed.

    :param address: of a guest, whose address may be known later than its settings; by default the host's.
    :raises Refusal: the host's key can't be read, or it or the login is none that pulumi-command can use; the private
        key can't be read, or the SSH agent doesn't answer, and this is not a preview.
    """
    ignored: list[str] = []
    key: str | None = None
    try:
        key = host.ssh.key
    except HomelabError as error:
        if not pulumi.runtime.is_dry_run():
            raise Refusal(error) from None
        ignored = ["connection.privateKey"]
    try:
        host_key = host.ssh.pinned_host_key
    except HomelabError as error:
        raise Refusal(error) from None
    if host_key.startswith("ssh-rsa "):
        # It takes the key's type for the only algorithm (ssh.ClientConfig.HostKeyAlgorithms), which for RSA is the one
        # with SHA-1.
        raise Refusal.of(
            wanted=f"a host key of {host.address} by which pulumi-command recognises it: ed25519 or ECDSA",
            found="an RSA key (ssh.hostKey or hostKeyFile)",
            why="pulumi-command asks for such a key by SHA-1 alone, which OpenSSH has refused since 8.8: every step "
            "would fail",
            next="set the line that `ssh-keyscan -t ed25519 ADDRESS` prints, without the address, and compare it on "
            "the host's console",
        )
    if host.ssh.agent and os.name == "nt":
        raise Refusal.of(
            wanted=f"a login to {host.address} that pulumi-command can use on Windows",
            found="ssh.agent: true",
            why="pulumi-command knows agents that listen on a Unix socket alone, and the one of Windows' OpenSSH has a "
            "pipe: every step would fail",
            next="set ssh.privateKeyFile, or ssh.privateKey as an encrypted value",
        )
    if not pulumi.runtime.is_dry_run():
        if host.ssh.agent:
            _ask_the_agent()
        else:
            _need_no_agent()
    password = None if host.ssh.password is None else host.ssh.password.get_secret_value()
    return (
        remote.ConnectionArgs(
            host=address or host.address,
            port=host.ssh.port,
            user=host.ssh.user,
            host_key=host_key,
            private_key=None if key is None else pulumi.Output.secret(host.ssh.value_of(key)),
            password=None if password is None else pulumi.Output.secret(host.ssh.value_of(password)),
            dial_error_limit=DIAL_ATTEMPTS,
            per_dial_timeout=host.timeouts.connect,
        ),
        ignored,
    )


@dataclass(frozen=True)
class Place:
    """Where a step runs. By default that is the host itself."""

    host: Host
    """Its SSH settings lead there."""
    address: pulumi.Input[str] | None = None
    """As of `connection`."""
    folder: KeptFolder | None = None
    """Where the agent is kept; by default where the host keeps it."""

    @property
    def kept(self) -> KeptFolder:
        """Where the agent is kept.

        :raises ValueError: the host's agent isn't declared (components/host_agent.py).
        """
        kept = self.folder or of_program(self.host).kept
        if kept is None:
            raise ValueError(f"no agent was put on {self.host.address}")
        return kept


@dataclass(frozen=True)
class Request:
    """What the agent is asked (`agent.request`)."""

    layer: str
    wanted: pulumi.Input[Any]
    """The layer's `Wanted`."""
    generation: pulumi.Input[int | str] = 0
    seconds: int | None = None
    """How long it may take; by default the host's `timeouts.step`."""
    is_act: bool = False
    """A test, or a restart."""
    ctid: int = 0
    proxy: str = ""
    """For downloads; with one the input is a secret."""

    def text(self, seconds: int) -> pulumi.Output[str]:
        """The request, once all of it is known.

        :param seconds: how long it may take.
        """

        asked = functools.partial(agent.request, seconds=seconds, is_act=self.is_act, ctid=self.ctid, proxy=self.proxy)
        known = pulumi.Output.all(wanted=self.wanted, generation=self.generation)
        text = known.apply(lambda values: asked(self.layer, **values))
        return pulumi.Output.secret(text) if self.proxy else text


def step(
    name: str,
    *,
    place: Place,
    request: Request,
    undone: bool = True,
    triggers: Sequence[pulumi.Input[object]] = (),
    identity: Sequence[str] = (),
    is_last: bool = False,
    opts: pulumi.ResourceOptions,
) -> remote.Command:
    """A layer of the host's agent (homelab/remote/agent.py): `apply` on create and update, and, when `undone`, `revert`
    on destroy.

    :param triggers: their change replaces the resource: Pulumi creates the new one first, and deletes the old
        one when nothing needs it any more. Never of what is applied and undone: the undo would run after the redo.
    :param identity: what is applied and undone is about, such as a container's id: if it changes, the old one is
        undone first, then the new one is made. What isn't undone has none.
    :param is_last: as of `agent.command`; there is nothing to apply.
    """
    if triggers and undone and not is_last:
        raise ValueError(f"{name}: what is applied and undone can't have triggers")
    host, kept = place.host, place.kept
    limit = request.seconds or limits.of_step(host)
    arguments, ignored = connection(host, place.address)
    of_this = identity if undone else ()
    # A state may have steps without a log: no reason to run them again.
    ignored.append("logging")

    def leave_if_off(values: dict[str, Any]) -> str:
        # Pulumi takes the list once all inputs are known.
        ignored.extend(["stdin", "create", "delete"] if values["is_off"] else [])
        return str(values["text"])

    text = pulumi.Output.all(text=request.text(limit), is_off=kept.is_off).apply(leave_if_off)
    options = pulumi.ResourceOptions(
        depends_on=[kept.after],
        ignore_changes=ignored,
        hooks=_around_each(host),
        delete_before_replace=bool(of_this) or None,
        custom_timeouts=limits.timeouts(limit),
    )
    return remote.Command(
        name,
        connection=arguments,
        create=None if is_last else agent.command("apply", host.ssh.user, kept.owner),
        delete=agent.command("revert", host.ssh.user, kept.owner, is_last) if undone else None,
        stdin=text,
        triggers=[*triggers, *of_this] or None,
        # sshd accepts no variables by default, and an error shows what went to stdout and stderr anyway.
        add_previous_output_in_env=False,
        # The display shows what it says there beside its name, while it runs.
        logging=remote.Logging.STDERR,
        opts=pulumi.ResourceOptions.merge(opts, options),
    )
