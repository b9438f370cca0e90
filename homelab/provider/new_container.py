"""The work on a NewContainer: makes it, changes it in place, removes it unless it is protected."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from homelab.errors import HomelabError
from homelab.properties import strings
from homelab.provider.new_guest import (
    CreatedGuest,
    NewGuestWork,
    created_container,
    id_in_use,
    is_marked,
    marked_anew,
)
from homelab.remote import ssh
from homelab.remote.ledger import stack_of
from homelab.remote.proxmox.errors import NotThereError
from homelab.resources.new_container import NewContainer
from homelab.text import tell
from remote_scripts.both.container_cards import Wanted as ContainerCards
from remote_scripts.both.terms import Terms
from remote_scripts.shared.properties import parse

# Of `config`, what is read back on a refresh, and changed in place.
COMPARED = ("hostname", "cores", "memory", "swap", "onboot", "nameserver", "features")
# The host's folders in it.
_MOUNTED = re.compile(r"mp\d+")


class NewContainerWork(NewGuestWork[NewContainer.Inputs]):
    """Creates a container over the API, changes it in place, and removes it unless it is protected."""

    resource = NewContainer

    def guest(self, inputs: NewContainer.Inputs) -> CreatedGuest:
        return created_container(inputs.ctid, inputs.container)

    def make(self, inputs: NewContainer.Inputs, instance: str) -> None:
        api, ctid, name, guest = self.api(inputs), inputs.ctid, inputs.container, self.guest(inputs)
        wanted, path = f"container {ctid} ({name}) created", guest.path(inputs.node)
        try:
            current = api.get(path, f"to read the configuration of {guest.label}")
        except NotThereError:
            tell(f"{name}: creating container {ctid}")
            parameters = {"description": f"{inputs.mark} {instance}"}
            parameters |= {**inputs.config, **inputs.secret_config}
            seconds = api.host.timeouts.create
            self._task(inputs, "post", f"nodes/{api.node}/lxc", wanted, seconds, vmid=ctid, **parameters)
            return
        config = strings(current)
        if not is_marked(inputs.mark, config) or "lock" in config:
            raise id_in_use(inputs.mark, guest, config)
        tell(f"{name}: container {ctid} was made by an earlier run that was interrupted")
        # The resource that made it before, such as the one that this one replaces, no longer removes it.
        api.put(path, wanted, digest=current["digest"], description=marked_anew(inputs.mark, instance, config))

    def _task(
        self,
        inputs: NewContainer.Inputs,
        verb: str,
        path: str,
        wanted: str,
        seconds: float,
        **parameters: Any,
    ) -> None:
        def say(text: str) -> None:
            tell(f"{inputs.container}: {text}")

        self.api(inputs).carry_out(verb, path, wanted, seconds, say, **parameters)

    def compared(self, inputs: NewContainer.Inputs) -> list[str]:
        return [*COMPARED, *(key for key in inputs.config if _MOUNTED.fullmatch(key))]

    def require_same_disk(self, inputs: NewContainer.Inputs, before: NewContainer.Inputs) -> None:
        for key, what in (("ostemplate", "template"), ("rootfs", "disk"), ("unprivileged", "unprivileged")):
            original, wanted = before.config.get(key), inputs.config.get(key)
            if original != wanted:
                raise HomelabError(
                    wanted=f"containers.{inputs.container}.create.{what}: {wanted}",
                    found=f"the container was made with {original}",
                    why="only a new container could have that, and what is on the disk would be lost",
                    next=f"put it back; or take containers.{inputs.container} out, run `pulumi up`, and create it "
                    "again",
                )

    def change(self, inputs: NewContainer.Inputs, before: NewContainer.Inputs, drift: list[str]) -> None:
        options_before, options = before.config, inputs.config
        keys = list(dict.fromkeys([*self.compared(inputs), *self.compared(before)]))
        changed = [
            key
            for key in (*keys, "net0")
            if key in options and (options_before.get(key) != options[key] or key in drift)
        ]
        removed = [key for key in keys if key in options_before and key not in options]
        if changed or removed:
            api, path = self.api(inputs), self.guest(inputs).path(inputs.node)
            change: dict[str, Any] = {key: options[key] for key in changed} | (
                {"delete": ",".join(removed)} if removed else {}
            )
            wanted = f"to change {', '.join([*changed, *removed])} of container {inputs.ctid}"
            current = api.get(path, wanted)
            if "net0" in change:
                change["net0"] += _rest_of_net(str(current.get("net0", "")))
            api.put(path, wanted, digest=current["digest"], **change)

    def remove(self, inputs: NewContainer.Inputs) -> None:
        api, ctid, name = self.api(inputs), inputs.ctid, inputs.container
        base = f"nodes/{api.node}/lxc/{ctid}"
        if api.get(f"{base}/status/current", f"to see whether container {ctid} runs")["status"] == "running":
            wanted = f"container {ctid} ({name}) off"
            timeout = inputs.shutdown.timeout
            # It is removed next: one that doesn't shut down is stopped.
            limit, force = timeout + api.host.timeouts.api_task, {"timeout": timeout, "forceStop": 1}
            self._task(inputs, "post", f"{base}/status/shutdown", wanted, limit, **force)
        wanted = f"container {ctid} ({name}) removed"
        # A storage may overwrite or discard the disk first, for as long as writing one took.
        with suppress(NotThereError):  # a task of a run that was killed has done so meanwhile
            self._task(inputs, "delete", base, wanted, api.host.timeouts.create, purge=1)
        given = ContainerCards(ctid=ctid, terms=Terms(owner=f"{stack_of(self.urn)}/{name}"))
        ssh.Session(api.host).ask("revert", "container_cards", given, goes_on=True)


def _rest_of_net(value: str) -> str:
    """What the settings don't have of a network card: its hardware address, by which it has a lease; and of an OCI
    image's container, which may set up none itself, that the host does it (`host-managed`).
    """
    options = parse("net0", value).items()
    return "".join(f",{key}={text}" for key, text in options if key not in ("name", "bridge", "ip", "gw"))
