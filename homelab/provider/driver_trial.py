"""The work on a DriverTrial: an update of a host's driver is tried in its containers, too, before the old version is
given up.

The host's update waits by then (`tried`, remote_scripts/shared/driver_update.py): the new driver is loaded, and answers
on the host. One container after the other gets the libraries of its version, by the steps by which it gets them anyway,
and keeps the old ones. Then all of them give those up, the host last; or, if one can't have the new ones, the host goes
back to the old driver, and then each container. Killed anywhere, the next `up` begins here again: what is done is found
done.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from homelab.errors import HomelabError, UnreachableError
from homelab.nvidia.plan import packages_to_ask_for, plan_stack
from homelab.nvidia.state import facts_of, request_of
from homelab.nvidia.verification import Expected
from homelab.provider.systems import Reached, SystemWork
from homelab.remote import nvidia_steps as steps
from homelab.resources import limits
from homelab.resources.base import NoOutputs
from homelab.resources.nvidia import DriverTrial
from homelab.settings import Nvidia
from homelab.shapes import SystemState
from homelab.text import tell
from remote_scripts.both.driver_update import Ended, Waiting
from remote_scripts.tools.plain import of_plain


@dataclass
class _Follower:
    """A container that follows its host's driver. `facts`: None where it has none of this program's."""

    name: str
    ctid: int
    nvidia: Nvidia
    facts: SystemState | None = None


class DriverTrialWork(SystemWork[DriverTrial.Inputs, NoOutputs]):
    """Tries a host's new driver in its containers, and confirms it or takes it back."""

    resource = DriverTrial

    def id(self, inputs: DriverTrial.Inputs) -> str:
        return f"{inputs.host} trial"

    def create(self, inputs: DriverTrial.Inputs) -> NoOutputs:
        stack = self.wanted_stack(inputs)
        followers = [
            _Follower(f"containers.{name}", container.ctid, container.nvidia)
            for name, container in sorted(self.stack.containers(inputs.host).items())
            if container.nvidia is not None
        ]
        if stack is None or not followers:
            return NoOutputs()
        reached = self.session(inputs, limits.of_step(self.host(inputs), stack))
        host = _Host(inputs.system_name, stack, reached, followers)
        update = host.waiting()
        if update.given_up:
            # Nothing is tried here; but a run may have been killed before all containers had theirs back.
            raise _given_up(update.given_up, host.containers_back(update.new))
        if update.phase not in ("tried", "back"):
            return NoOutputs()
        failed = None
        if update.phase == "tried":
            failed = host.try_containers(update.new, update.running)
            if failed is None:
                host.confirm()
                return NoOutputs()
        raise host.take_back(update.old, update.new, failed)


def _given_up(version: str, messages: list[str]) -> HomelabError:
    return HomelabError(
        wanted=f"NVIDIA's driver {version} on the host, and its libraries in each of its containers",
        found="an earlier run failed to install it everywhere, and put the old version back"
        + "".join(f"; {message}" for message in messages),
        why="a container's libraries must be of the host's version, to the last digit",
        next="set nvidia.driver of the host to the version that is there; or mend what that run has named, and for "
        "another try: `pulumi up --refresh`",
    )


@dataclass
class _Host:
    """A host whose driver's update waits, and the connection to it. `seconds`: how long one thing may take there."""

    name: str
    nvidia: Nvidia
    reached: Reached
    followers: list[_Follower]

    def waiting(self) -> Waiting:
        """How far the host's update is."""
        ctids = [follower.ctid for follower in self.followers]
        wanted = steps.driver_update("host", self.nvidia, self.name, ctids)
        return of_plain(Waiting, self.ask("read", "driver_update", wanted), "update")

    def end(self, verb: str, follower: _Follower | None = None) -> Ended:
        """What the layer driver_update answers on the host, or in a container: the update's end."""
        system: _Host | _Follower = follower or self
        wanted = steps.driver_update("lxc" if follower else "host", system.nvidia, system.name)
        return of_plain(Ended, self.ask(verb, "driver_update", wanted, follower), "update")

    def ask(self, verb: str, layer: str, wanted: Any, follower: _Follower | None = None) -> Any:
        """What a layer answers on the host, or in a container."""
        nvidia = follower.nvidia if follower else self.nvidia
        where = self.reached.inside(follower.ctid) if follower else self.reached
        return where.ask(verb, layer, wanted, proxy=nvidia.proxy.get_secret_value() if nvidia.proxy else "")

    def try_containers(self, version: str, running: Sequence[int]) -> tuple[_Follower, HomelabError] | None:
        """Brings the libraries into one container after the other.

        :returns: the first that can't have them, and why.
        """
        for follower in self.followers:
            if follower.ctid not in running:
                tell(f"{self.name}: {follower.name} is off: the driver {version} is not tried in it")
                continue
            tell(
                f"{self.name}: trying the libraries of {version} in {follower.name}, before the old driver is given up"
            )
            try:
                has_libraries = self._has_libraries(follower)
            except UnreachableError:
                raise
            except HomelabError as error:  # a container without a shell, say; its own stack fails by that
                tell(
                    f"{self.name}: {follower.name} can't be looked into ({error.found}): the driver {version} is not "
                    "tried in it"
                )
                continue
            try:
                if has_libraries:
                    self._bring_in(follower)
            except UnreachableError:
                raise
            except HomelabError as error:
                return follower, error
        return None

    def _has_libraries(self, follower: _Follower) -> bool:
        """Reads the container: has it libraries of this program's? One that has none yet loses none."""
        system = self.reached.inside(follower.ctid).read()
        follower.facts = facts_of(system, "lxc") if "driver" in system.steps else None
        return follower.facts is not None

    def _bring_in(self, follower: _Follower, *, repository_alone: bool = False, awaited: bool = True) -> None:
        """The steps of its stack that bring the libraries of `facts["host_driver"]`.

        :param awaited: the old ones are kept until `confirm`.
        """
        assert follower.facts is not None
        request = request_of("lxc", follower.name, follower.facts, follower.nvidia)
        plan = plan_stack(request)
        context = Expected.of(request, plan).context
        wanted = steps.repository(plan, follower.nvidia, context, packages_to_ask_for(request))
        offered = self.ask("apply", "nvidia_repository", wanted, follower)["offered"]
        if repository_alone:
            return
        request = request_of("lxc", follower.name, follower.facts, follower.nvidia, offered)
        plan = plan_stack(request)
        context = Expected.of(request, plan).context
        driver = steps.driver(plan, follower.nvidia, context, awaited=awaited)
        self.ask("apply", "nvidia_driver", driver, follower)

    def confirm(self) -> None:
        """The new version stays, the host last: killed before that, the next run tries all of it again."""
        for follower in self.followers:
            if follower.facts is not None:
                self.end("apply", follower)
        self.end("apply")

    def take_back(self, old: str, new: str, failed: tuple[_Follower, HomelabError] | None) -> HomelabError:
        """The old version is put back: on the host first, so that each container can be seen at work with it.

        :returns: what to say.
        """
        reason = failed[1] if failed else _given_up(new, [])
        if failed is not None:
            tell(f"{self.name}: {failed[0].name} can't have the libraries of {new}: putting {old} back everywhere")
        try:
            answer = self.end("revert")
        except HomelabError as error:
            return reason.retold(
                why=f"{reason.why}; the host's update from {old} to {new} is given up, and {old} could not be put "
                f"back: {error.wanted}; found: {error.found}",
                next=f"run `pulumi up` again: it goes on with putting {old} back. {error.next}. For the update: "
                f"{reason.next}",
            )
        if not answer.old:
            # Nothing leads back: whoever can is to follow the host, and no container's own stack is to wait for the
            # others.
            failures = self._follow_anyway(failed[0] if failed else None)
            stays = (
                f"{reason.next} (The host stays with {new}: no repository and no cache had all of {old}'s packages.)"
            )
            return reason.retold(next="; ".join([stays, *failures]))
        messages = [f"{self.name}: {answer.now}", *self.containers_back(old)]
        if failed is None:
            return _given_up(new, messages)
        return reason.retold(
            why=f"{reason.why}; a container's libraries must be of the host's version, and so the host's update from "
            f"{old} to {new} is given up, too",
            next=f"the driver {old} is back: {'; '.join(messages)}. Set {self.name}.nvidia.driver to it; or for "
            f"another try: {reason.next}, then run `pulumi up --refresh`",
        )

    def _follow_anyway(self, failed: _Follower | None) -> list[str]:
        """Brings the host's version into all others, and ends the update.

        :returns: who can't have it, and why.
        """
        failures, running = [], self.waiting().running
        for follower in self.followers:
            if follower is failed or follower.ctid not in running:
                follower.facts = None
                continue
            try:
                if self._has_libraries(follower):
                    self._bring_in(follower)
            except UnreachableError:
                raise
            except HomelabError as error:
                follower.facts = None
                failures.append(f"{follower.name}: {error.wanted}; found: {error.found}; {error.next}")
        self.confirm()
        return failures

    def containers_back(self, old: str) -> list[str]:
        """Each container that runs and has this program's libraries gets the old ones.

        :returns: what is so now, a sentence for each.
        """
        messages = []
        running = self.waiting().running
        for follower in self.followers:
            if follower.ctid not in running:
                continue
            try:
                if not self._has_libraries(follower):
                    continue
                answer = self.end("revert", follower)
                # Its preferences name the new version by now.
                follower.facts = {**follower.facts, "host_driver": old} if follower.facts else None
                is_back = bool(answer.old) or bool(re.search(rf"libraries are {re.escape(old)}(?![\d.])", answer.now))
                try:
                    self._bring_in(follower, repository_alone=is_back, awaited=False)
                except UnreachableError:
                    raise
                except HomelabError:
                    # Settings that name the new version can't be planned with the old one: one that is back stays as it
                    # is.
                    if not is_back:
                        raise
                messages.append(f"{follower.name}: {answer.now if is_back else f'its libraries are {old} again'}")
            except UnreachableError:
                raise
            except HomelabError as error:
                messages.append(
                    f"{follower.name} could not be put back: {error.wanted}; found: {error.found}; {error.next}"
                )
        return messages
