"""Files on a node's storages over the API: which there are, downloading one, removing one. What is decided about them:
homelab/vm/files.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from homelab.errors import HomelabError
from homelab.remote.proxmox.api import Api
from homelab.remote.proxmox.errors import ApiError, StillRunsError, TaskFailedError
from homelab.settings import Container, Host, Vm
from homelab.vm import files as decided

# How long a task that is told to end may take for it, in seconds.
END_SECONDS = 30.0


@dataclass(frozen=True)
class Source:
    """Where a file comes from. `name`: the download's, `hosts.pve.downloads.noble`; `url`: None: Proxmox VE's list of
    templates knows it; `checksum`: as `Download.checksum`.
    """

    name: str
    url: str | None
    checksum: str | None


class Files:
    """A node's. `say`: gets the lines of tasks."""

    def __init__(self, api: Api, say: Callable[[str], None]) -> None:
        self._api, self._say = api, say

    def on(self, storage: str, content: str) -> list[str]:
        """The volumes of a content on a storage.

        :raises ApiError: the API doesn't say.
        """
        path = f"nodes/{self._api.node}/storage/{storage}/content"
        rows = self._api.get(path, f"to see what lies on the storage {storage}", content=content)
        return [str(row["volid"]) for row in rows]

    def there(self, volume: str) -> bool:
        """Is it on its storage?

        :raises ApiError: the API doesn't say.
        """
        storage, content, _ = decided.parts(volume)
        return volume in self.on(storage, content)

    def storages(self) -> list[Mapping[str, Any]]:
        """The node's storages.

        :raises ApiError: the API doesn't say.
        """
        found: list[Mapping[str, Any]] = self._api.get(f"nodes/{self._api.node}/storage", "to see the node's storages")
        return found

    def require_room(self, volume: str, source: Source) -> None:
        """:raises HomelabError: the file can't come there, or its server doesn't have it."""
        size = None
        if source.url is not None:
            path = f"nodes/{self._api.node}/query-url-metadata"
            try:
                answer = self._api.get(path, f"{source.url} asked how large it is, for {source.name}", url=source.url)
            except ApiError as error:
                raise _explained(error, source) from error
            size = int(answer["size"]) if str(answer.get("size", "")).isdigit() else None
        if stands := decided.storage_refusal(source.name, volume, self.storages(), size):
            raise stands

    def fetch(self, volume: str, source: Source) -> None:
        """Downloads it, or goes on waiting where the node already does. Proxmox VE writes it beside its place, and
        moves it there once it is whole and its checksum is right. A file that is there, and has the checksum, is left
        as it is.

        :raises HomelabError: it couldn't be; nothing is left of it. UnansweredError: it isn't known.
        """
        api, (storage, content, name) = self._api, decided.parts(volume)
        wanted = f"{volume} downloaded, for {source.name}"
        seconds = api.host.timeouts.create
        try:
            running = next((t for t in api.tasks(source="active", typefilter="download") if t.get("id") == name), None)
            if running is not None:
                self._say("the node is downloading it already, since an earlier run: waiting for that")
                api.task(str(running["upid"]), wanted, seconds, self._say)
                return
            if source.url is None:
                path, about = f"nodes/{api.node}/aplinfo", {"storage": storage, "template": name}
            else:
                path = f"nodes/{api.node}/storage/{storage}/download-url"
                about = {"url": source.url, "content": content, "filename": name}
                if source.checksum:
                    algorithm, _, digits = source.checksum.partition(":")
                    about |= {"checksum": digits, "checksum-algorithm": algorithm}
            api.carry_out("post", path, wanted, seconds, self._say, kinds=("download",), **about)
        except StillRunsError as error:
            raise self._ended(error, source, seconds) from error
        except ApiError as error:
            raise _explained(error, source) from error

    def _ended(self, error: StillRunsError, source: Source, seconds: float) -> HomelabError:
        """A download that never ends is told to: it would go on by itself, and nobody would know."""
        ended = self._api.end_task(error.upid, error.wanted, END_SECONDS)
        return TaskFailedError(
            wanted=error.wanted,
            found=error.found,
            why="it was told to end, and what had come was thrown away"
            if ended
            else "it was told to end, and hasn't: it may still come to its end",
            next=f"see whether the host reaches {source.url or 'download.proxmox.com'}, and how fast. One that "
            f"takes longer than {seconds:.0f} seconds "
            "gets more time with hosts.<name>.timeouts.create; then run `pulumi up` again",
            status=error.status,
            reason=error.reason,
        )

    def end(self, volume: str) -> None:
        """Ends a download of it that the node is still at, since a run that was interrupted; nothing is left of it.

        :raises ApiError: as `Api.end_task`.
        """
        _, _, name = decided.parts(volume)
        for task in self._api.tasks(source="active", typefilter="download"):
            if task.get("id") == name:
                self._api.end_task(str(task["upid"]), f"the download of {volume} ended", END_SECONDS)

    def remove(self, volume: str) -> None:
        """Removes it; one that is gone already needs nothing.

        :raises ApiError: as `Api.carry_out`.
        """
        storage, _, _ = decided.parts(volume)
        path = f"nodes/{self._api.node}/storage/{storage}/content/{volume}"
        seconds = self._api.host.timeouts.api_task
        self._api.carry_out("delete", path, f"{volume} removed", seconds, self._say, kinds=("imgdel",))


def _explained(error: ApiError, source: Source) -> ApiError:
    """With what a failed download's own words mean, where they are known."""
    known = decided.failed_download(source.name, source.url, error.reason)
    template = source.url is None and "no such template" in error.found
    if template:
        known = (
            "Proxmox VE downloads templates of its list alone; nothing was changed",
            f"correct {source.name}.template: `pveam update` on the host, then `pveam available` lists them",
        )
    elif error.reason.startswith("invalid server response"):
        known = (
            "what can't be reached can't be downloaded; nothing was changed",
            f"correct {source.name}.url, or see whether the host reaches it (a proxy: Datacenter -> Options -> HTTP "
            "proxy)",
        )
    if known is None:
        return error
    return error.retold(why=known[0], next=known[1])


def check(
    api: Api, name: str, host: Host, vms: Mapping[str, Vm], containers: Mapping[str, Container]
) -> list[HomelabError]:
    """What stands against the files that guests are to be made of: no place for a download, or a file that nobody
    downloads and isn't there.

    :param name: the host's in the settings.
    :param vms: those that are still to be made.
    :param containers: those that are still to be made.
    :raises ApiError: the API doesn't say.
    """
    files = Files(api, lambda _: None)
    downloads = {one.volume: key for key, one in host.downloads.items()}
    wanted = decided.wanted_volumes(vms, containers)
    if not downloads and not wanted:
        return []
    rows = files.storages()
    found = [
        decided.storage_refusal(f"hosts.{name}.downloads.{key}", volume, rows) for volume, key in downloads.items()
    ]
    errors = [one for one in found if one is not None]
    known = {str(row["storage"]) for row in rows}
    for volume, place in wanted.items():
        storage, content, _ = decided.parts(volume)
        have = files.on(storage, content) if storage in known else []
        if volume not in downloads and volume not in have:
            errors.append(decided.missing(place, volume, have))
    return errors
