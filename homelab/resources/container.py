"""NewContainer: a container that this program makes through the API, and removes with the stack unless it is protected.

Its description carries a mark, by which an interrupted run finds its own container again, and without which none is ever removed.
Features other than nesting are root@pam's alone. What can be changed in place is; its template, its disk's storage and whether it
is unprivileged can't be, and a change there is refused, as making it anew would lose what is on it.
"""

from __future__ import annotations

import secrets
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from homelab.resources.api import ApiProvider, stays
from homelab.text import tell

OUTPUTS = ("instance", "drift")
# Of `config`, what is read back on a refresh, and changed in place.
COMPARED = ("hostname", "cores", "memory", "swap", "onboot", "nameserver", "features")
MOVED = "node"  # of drift: it is on another node of the cluster


class NewContainerProvider(ApiProvider):
    """See the module. Inputs: host, node, container, ctid, config, secret_config, protect, mark, shutdown."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        instance = secrets.token_hex(8)
        self._made(props, instance)
        return CreateResult(str(int(props["ctid"])), {**props, "instance": instance, "drift": []})

    def _made(self, props: dict[str, Any], instance: str) -> None:
        from homelab.errors import HomelabError

        api, ctid, name = self.api(props), int(props["ctid"]), props["container"]
        wanted = f"container {ctid} ({name}) created"
        config = self._config(props)
        if config is None:
            tell(f"{name}: creating container {ctid}")
            about = {"description": f"{props['mark']} {instance}"}
            about |= {**props["config"], **props["secret_config"]}
            self._task(
                props, "post", f"nodes/{api.node}/lxc", wanted, "vzcreate", api.host.timeouts.create, vmid=ctid, **about
            )
        elif props["mark"] in config.get("description", "") and "lock" not in config:
            tell(f"{name}: container {ctid} was made by an earlier run that was interrupted")
        else:
            raise HomelabError(
                wanted=wanted,
                found=f"there is a container {ctid} already: {config.get('hostname', 'without a name')}"
                + (f", locked ({config['lock']})" if "lock" in config else ""),
                why="it is not this program's, or not finished; nothing was changed",
                next=f"choose another ctid, or leave `create` out of containers.{name} to adopt that container as it is",
            )

    def _task(
        self, props: dict[str, Any], verb: str, path: str, wanted: str, kind: str, seconds: float, **parameters: Any
    ) -> None:
        def say(text: str) -> None:
            tell(f"{props['container']}: {text}")

        self.api(props).carry_out(verb, path, wanted, seconds, say, kinds=(kind,), **parameters)

    def _config(self, props: dict[str, Any]) -> dict[str, str] | None:
        """The container's configuration; None: there is none."""
        from homelab.remote.proxmox.errors import NotThereError
        from homelab.vm.config import strings

        api = self.api(props)
        try:
            found = api.get(self._path(props), f"to read the configuration of container {int(props['ctid'])}")
        except NotThereError:
            return None
        return strings(found)

    @staticmethod
    def _path(props: dict[str, Any]) -> str:
        return f"nodes/{props['node']}/lxc/{int(props['ctid'])}/config"

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        from homelab.properties import same
        from homelab.remote.proxmox.errors import ElsewhereError, NotThereError
        from homelab.vm.config import strings

        if "config" not in props:
            return ReadResult(id_, props)
        ctid = int(props["ctid"])
        try:
            found = self.reading(props, self._path(props), f"to read the configuration of container {ctid}")
        except NotThereError:
            tell(f"{props['container']}: drift: container {ctid} is gone")
            return ReadResult("", {})
        except ElsewhereError as error:
            tell(f"{props['container']}: drift: {error.found}")
            return ReadResult(id_, {**props, "drift": [MOVED]})
        config = strings(found)
        drift = [
            key for key in COMPARED if key in props["config"] and not same(key, config.get(key), props["config"][key])
        ]
        for key in drift:
            tell(
                f"{props['container']}: drift: {key} is {config.get(key, 'not there')} instead of {props['config'][key]}"
            )
        return ReadResult(id_, {**props, "drift": drift})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        changed = bool(olds.get("drift")) or any(olds.get(key) != news.get(key) for key in news if key not in OUTPUTS)
        replaces = [key for key in ("host", "node", "ctid") if olds.get(key) != news.get(key)]
        return DiffResult(changes=changed, replaces=replaces, stables=[], delete_before_replace=False)

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        _require_same(olds, news)
        if MOVED in olds["drift"]:
            self._config(news)  # refused, unless it is back
        had, have = olds["config"], news["config"]
        again = [
            key for key in (*COMPARED, "net0") if key in have and (had.get(key) != have[key] or key in olds["drift"])
        ]
        gone = [key for key in COMPARED if key in had and key not in have]
        if again or gone:
            api, ctid = self.api(news), int(news["ctid"])
            change = {key: have[key] for key in again} | ({"delete": ",".join(gone)} if gone else {})
            wanted = f"to change {', '.join([*again, *gone])} of container {ctid}"
            digest = api.get(self._path(news), wanted)["digest"]
            api.put(self._path(news), wanted, digest=digest, **change)
        return UpdateResult({**news, "instance": olds["instance"], "drift": []})

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        config = self._config(props)
        if config is None:
            return
        api, ctid, name = self.api(props), int(props["ctid"]), props["container"]
        same = [name for name, one in self.containers(props).items() if one.ctid == ctid and one.create is None]
        if why := stays(props, config, "container", [f"containers.{name}" for name in same]):
            tell(f"{name}: container {ctid} stays: {why}")
            return
        base = f"nodes/{api.node}/lxc/{ctid}"
        if api.get(f"{base}/status/current", f"to see whether container {ctid} runs")["status"] == "running":
            wanted = f"container {ctid} ({name}) off"
            timeout = int(props["shutdown"]["timeout"])
            # It is removed next: one that doesn't shut down is stopped.
            limit, force = timeout + api.host.timeouts.api_task, {"timeout": timeout, "forceStop": 1}
            self._task(props, "post", f"{base}/status/shutdown", wanted, "vzshutdown", limit, **force)
        wanted = f"container {ctid} ({name}) removed"
        # A storage may overwrite or discard the disk first, for as long as writing one took.
        self._task(props, "delete", base, wanted, "vzdestroy", api.host.timeouts.create, purge=1)


def _require_same(olds: dict[str, Any], news: dict[str, Any]) -> None:
    from homelab.errors import HomelabError

    for key, what in (("ostemplate", "template"), ("rootfs", "disk"), ("unprivileged", "unprivileged")):
        old, new = olds["config"].get(key), news["config"].get(key)
        if old != new:
            raise HomelabError(
                wanted=f"containers.{news['container']}.create.{what}: {new}",
                found=f"the container was made with {old}",
                why="that can only be had by making the container anew, and what is on its disk would be lost",
                next=f"put it back; or take containers.{news['container']} out, run `pulumi up`, and create it again",
            )


class NewContainer(Resource, module="homelab", name="NewContainer"):
    """The dynamic resource. Output ``instance``: what tells this container from a later one of the same id."""

    instance: pulumi.Output[str]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(NewContainerProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)
