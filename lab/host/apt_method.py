"""What apt gets files and checks signatures by in a lab (apt's method interface): the lab's network behind every address, and its keys.

A signature of the lab names the key that it was made with, by the real one's fingerprint. It is good where that key is in a
keyring of the source's Signed-By, and is one of the fingerprints there if there are some.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from . import debs, network
from .program import Failure
from .state import HostState

_TRUSTED = "/etc/apt/trusted.gpg.d"
_BLOCK = "-----BEGIN PGP PUBLIC KEY BLOCK-----"


def main(system: HostState, name: str, arguments: list[str]) -> int:
    """Answer apt until it has no more questions."""
    _say("100 Capabilities", {"Version": "1.0", "Single-Instance": "true", "Needs-Cleanup": "true"})
    for asked in _messages():
        uri = asked["URI"]
        try:
            if not uri.startswith("http"):
                _verify(system, uri, unquote(asked.get("Signed-By", "")))
                _say("201 URI Done", {"URI": uri, "Filename": asked["Filename"]})
                continue
            content = _content(system, unquote(uri))
        except Failure as error:
            why = (
                {"Transient-Failure": "true"}
                if error.status == network.NO_NAME
                else {"FailReason": f"HttpError{str(error)[:3]}"}
            )
            _say("400 URI Failure", {"URI": uri, "Message": str(error), **why})
            continue
        _say("200 URI Start", {"URI": uri, "Size": str(len(content))})
        Path(asked["Filename"]).write_bytes(content)
        about = {"Size": str(len(content)), "SHA256-Hash": network.known_digest(system, content)}
        _say("201 URI Done", {"URI": uri, "Filename": asked["Filename"], **about})
    return 0


def _messages() -> Iterator[dict[str, str]]:
    """The fields of each file that is asked for; a field's further lines begin with a blank."""
    head, last, fields = "", "", dict[str, str]()
    for raw in sys.stdin:
        line = raw.rstrip("\n")
        if not line:
            if head.startswith("600"):
                yield fields
            head, fields = "", {}
        elif not head:
            head = line
        elif line[0] == " ":
            fields[last] += f"\n{line[1:]}"
        else:
            last, _, value = line.partition(":")
            fields[last] = value.strip()


def _say(status: str, fields: dict[str, str]) -> None:
    print(f"{status}\n{debs.text_of(fields)}", flush=True)


def _content(system: HostState, url: str) -> bytes:
    if name := network.offline(system, url):
        raise Failure(f"Temporary failure resolving '{name}'", network.NO_NAME)
    content = debs.file_at(system, url)
    if content is None:
        raise Failure("404  Not Found")
    if not url.endswith("InRelease"):
        if network.fault(system, "disk-full") is not None:
            raise Failure("Error writing to file - write (28: No space left on device)")
        return network.as_transferred(system, url, content)
    return content


def _verify(system: HostState, uri: str, signed_by: str) -> None:
    """As apt's gpgv method.

    Args:
        uri: `gpgv:PATH`, or `sqv:PATH`.
        signed_by: a key, or keyrings and fingerprints with commas between; empty: the system's keyrings.

    Raises:
        Failure: no key that may be has signed it.
    """
    signer = network.signer_of(Path(uri.partition(":")[2]).read_bytes())
    if signed_by.strip().startswith(_BLOCK):
        keyrings, wanted = [signed_by.strip().encode()], set[str]()
    else:
        words = [word.strip() for word in signed_by.split(",") if word.strip()]
        paths = [system.rooted(word) for word in words if word.startswith("/")]
        wanted = {word.rstrip("!") for word in words if not word.startswith("/")}
        trusted = system.rooted(_TRUSTED)
        if not paths and trusted.is_dir():
            paths = sorted(trusted.iterdir())
        keyrings = [path.read_bytes() for path in paths if path.is_file()]
    known = {key.fingerprint for content in keyrings for key in network.keys_in(content)}
    if signer not in known or (wanted and signer not in wanted):
        raise Failure(
            f"The following signatures couldn't be verified because the public key is not available: NO_PUBKEY {signer[-16:]}"
        )
