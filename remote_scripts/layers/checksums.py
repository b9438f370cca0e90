"""The checksums that the maker of an image publishes, fetched as Proxmox VE's own downloads are."""

from __future__ import annotations

from remote_scripts.both.checksums import Answer, Wanted
from remote_scripts.shared.guest_conf import option_of
from remote_scripts.shared.pmxcfs import text_of
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from remote_scripts.tools.text import ANSWER_BYTES, as_text

_SECONDS = 120.0


def read(system: System, wanted: Wanted) -> Answer:
    """Fetches the file.

    :raises Failure: it can't be had, or is empty; or whether it is fetched over a proxy can't be read.
    """
    # Of Proxmox VE's datacenter options.
    proxy = option_of(text_of(system, "/etc/pve/datacenter.cfg").splitlines(), "http_proxy")
    environment = {"http_proxy": proxy, "https_proxy": proxy} if proxy else {}
    command = ("wget", "-nv", "--timeout=30", "--tries=3", "-O", "-", "--", wanted.url)
    done = system.run.ask(*command, seconds=_SECONDS, environment=environment)
    if done.status or not done.output.strip():
        raise Failure(
            f"the checksums that an image's maker publishes, from {wanted.url}",
            done.failure("wget") if done.status else "an empty file",
            "an image without a checksum to compare it with is not downloaded; nothing was changed",
            f"see whether the host reaches the address (`wget -O - {wanted.url}` there), then run `pulumi up` again; "
            "or set the download's checksum, or put the image onto the storage yourself and name its volume",
        )
    return Answer(as_text(done.output, ANSWER_BYTES))
