"""NVIDIA's stack as steps: a plan and settings turned into what each script gets on its standard input.

What is decided lies in the plan; the scripts only carry it out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from host.scripts import compose

from .settings import Nvidia
from .symptoms import Context, Symptom, symptoms

__all__ = ["in_container", "package_arguments", "read_system"]

# Where the texts come from that the scripts meet; those of the card itself are judged in Python.
_MET_BY_SCRIPTS = re.compile(r"apt|dpkg|dkms|curl|sha256sum|installer|modprobe")


def read_system(asked: Sequence[str] = ()) -> str:
    """Standard input of read_system.sh; ``asked``: packages whose offered versions are told (`plan.packages_to_ask_for`)."""
    return compose("read_system.sh", ASK=" ".join(asked))


def in_container(ctid: int, script: str, verb: str) -> str:
    """Standard input of in_container.sh, to be run on the host with the same verb.

    :param script: standard input of a script for inside.
    """
    if verb not in ("apply", "revert", "read_system"):
        raise ValueError(f"in_container.sh has no verb {verb!r}")
    return compose("in_container.sh", CTID=str(ctid), SCRIPT=script)


def package_arguments(settings: Nvidia, context: Context) -> dict[str, str]:
    """The arguments of remote_scripts/lib/packages.sh."""
    proxy, timeouts = settings.proxy, settings.timeouts
    return {
        "NAME": context.name,
        "SYMPTOMS": _table(context),
        "PROXY": proxy.get_secret_value() if proxy else "",
        "LOCK_SECONDS": str(timeouts.lock),
        "DOWNLOAD_SECONDS": str(timeouts.download),
        "INSTALL_SECONDS": str(timeouts.install),
    }


def _table(context: Context) -> str:
    """The symptoms for `explain`: a line each, the cause that holds in this context; what the text itself says is filled in there."""
    rows = [row for row in symptoms() if _MET_BY_SCRIPTS.search(row.where)]
    return "\n".join("\t".join(_columns(row, context)) for row in rows)


def _columns(row: Symptom, context: Context) -> Sequence[str]:
    cause = row.cause(context)
    values = {**row.values(context), "what": "{what}"}
    texts = (text.format(**values) for text in (row.wanted, cause.why, cause.next))
    return (row.name, row.pattern, row.where, *texts, " ".join(row.hides))
