"""Bytes that a host's files and programs may hold."""

from __future__ import annotations

JUNK = {
    "a byte of Latin-1": b"f\xfcr",
    "a character that was cut": b"f\xc3",
    "half of a surrogate pair": b"\xed\xa0\x80",
    "an overlong slash": b"\xc0\xaf \xe0\x80\xaf",
    "beyond the last character": b"\xf4\x90\x80\x80 \xf8\x88\x80\x80\x80",
    "bytes alone": b"\x80\xbf\xfe\xff",
    "control characters": b"a\x01\x07\x08\x0b\x1f\x7fb",
    "the second row of control characters": b"\xc2\x80\xc2\x9b31m",
    "an escape sequence": b"\x1b[31;1mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link",
    "half an escape sequence": b"x\x1b[",
    "carriage returns": b"10%\r50%\r100%\r\ndone",
    "backslashes": b"\\ \\\\ \\n \\u0041 \\x \\",
    "quotes": b'"\' "\\"',
    "what turns the writing": "a\u202eb\u2066c\u200fd\u200be\ufefff".encode(),
    "many of them": bytes(range(1, 256)),
    "good text": "für 日本 😀 €".encode(),
    "newlines and tabs": b"\ta\n\nb\t\n",
}
