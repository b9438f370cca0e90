"""What goes out is text, whatever bytes came in.

What a file or a program of a host says may hold any bytes, and be of any length. What goes out is UTF-8 without escape
sequences and control characters, without the marks that turn or hide writing, and without passwords in addresses.
"""

from __future__ import annotations

import re

#: How many bytes of a text go into an answer, into the log at once, and into one line of the log. A line of 65,536
#: bytes or more makes pulumi-command wait for ever (bufio.Scanner), and a byte that is no character becomes three.
ANSWER_BYTES = 262144
LOG_BYTES = 65536
LINE_BYTES = 16384

_SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
# Each of them is looked at once: from its beginning.
_RETURNS = re.compile(r"(?<!\r)\r+$", re.MULTILINE)
_SECRETS = re.compile(r"://[^/\s\"'<>]+@")


def as_text(content: bytes | str, limit: int = ANSWER_BYTES) -> str:
    """The content as text: U+FFFD stands for each byte or character that is none, or that hides others; a carriage
    return ends its line.

    :param limit: in bytes; of a longer one head and tail are left.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    data = data.replace(b"\0", b"")
    if len(data) > limit:
        left_out = len(data) - limit
        half = limit // 2
        data = data[:half] + b"\n\xe2\x80\xa6 %d bytes are left out here \xe2\x80\xa6\n" % left_out + data[-half:]
    text = data.decode("utf-8", "surrogateescape")
    if text.isascii() and text.isprintable():
        return text
    text = _SEQUENCES.sub("", text)
    text = _RETURNS.sub("", text).replace("\r", "\n")
    return _UNSAFE.sub("\ufffd", text)


def without_secrets(text: str, proxy: str = "") -> str:
    """The text without the user and the password of any address.

    :param proxy: this run's own, whose user and password are taken out wherever they stand.
    """
    if "@" in proxy:
        user = proxy.rpartition("@")[0].rpartition("://")[2]
        text = text.replace(user, "(secret)")
        _, colon, password = user.partition(":")
        if colon and password:
            text = text.replace(password, "(secret)")
    return _SECRETS.sub("://(secret)@", text)
