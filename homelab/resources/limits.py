"""How long a resource may take: Pulumi's customTimeouts from the settings, and an end for what Pulumi itself doesn't
end.

A step's time is kept where it runs (`agent.request`): pulumi-command looks at its limit while it dials, and not while
a command runs. To a provider, Pulumi only names the limit: `ended_in_time` keeps it.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import pulumi

from homelab.errors import HomelabError
from remote_scripts.both import reboot
from remote_scripts.both.terms import HANDOVER_SECONDS
from remote_scripts.tools.time_limit import NoEndError, within_limit

if TYPE_CHECKING:
    from homelab.nvidia.settings import Nvidia
    from homelab.settings import Host, Settings

T = TypeVar("T")


def of_step(host: Host, stack: Nvidia | None = None) -> int:
    """Seconds for a step on a host; with `stack` for a step of NVIDIA's."""
    if stack is None:
        return host.timeouts.step
    # What one step does: waits for apt, then fetches and installs what is asked for, what that needs, and NVIDIA's
    # installer.
    return host.timeouts.step + stack.timeouts.lock + 3 * (stack.timeouts.download + stack.timeouts.install)


def of_reboot(host: Host) -> int:
    """Seconds for the layer reboot: besides a step's own, it waits for the cluster up to three times."""
    return host.timeouts.step + 3 * reboot.TURN_SECONDS


def of_task(host: Host, inputs: Mapping[str, Any]) -> int:
    """Seconds for a resource of the provider with these inputs: one task, and all that it may wait for besides."""
    seconds = host.timeouts.task + 2 * host.timeouts.reboot + host.timeouts.rollback
    shutdown, stack = inputs.get("shutdown"), inputs.get("timeout")
    if isinstance(shutdown, dict):
        # Shut down and started, and once more if what was changed is taken back. Whether the VM has a hookscript that
        # waits isn't known here.
        seconds += 2 * (int(shutdown["timeout"]) + (HANDOVER_SECONDS if inputs.get("vmid") is not None else 0))
    return seconds + (2 * int(stack) if isinstance(stack, int | float) else 0)


def timeouts(seconds: int) -> pulumi.CustomTimeouts:
    """One limit in seconds for creating, updating and deleting a resource."""
    return pulumi.CustomTimeouts(create=f"{seconds}s", update=f"{seconds}s", delete=f"{seconds}s")


def limit_every_resource(settings: Settings) -> None:
    """From here on every resource of a host that has no limit of its own gets one."""

    def limited(args: pulumi.ResourceTransformationArgs) -> pulumi.ResourceTransformationResult | None:
        host = settings.hosts.get(str(args.props.get("host"))) if isinstance(args.props, dict) else None
        if host is None or args.opts.custom_timeouts is not None:
            return None
        limit = pulumi.ResourceOptions(custom_timeouts=timeouts(of_task(host, args.props)))
        return pulumi.ResourceTransformationResult(args.props, pulumi.ResourceOptions.merge(args.opts, limit))

    pulumi.runtime.register_stack_transformation(limited)


def ended_in_time(what: str, seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises.

    :param what: for the message.
    :raises HomelabError: it hasn't ended in that time. It isn't waited for any more, and ends with this process.
    """
    context = contextvars.copy_context()  # messages within are of the same resource
    try:
        return within_limit(lambda: context.run(work), seconds)
    except NoEndError as error:
        raise HomelabError(
            wanted=f"{what} done within {seconds:g} s",
            found="it has not ended",
            why="something on the host or on the way to it hangs; how far it got isn't known",
            next="look at the host's tasks (in Proxmox VE's web interface, or `pvenode task list --source active`); "
            "then run `pulumi up` again, which finishes what is half done. What takes longer by nature: timeouts.task",
        ) from error
