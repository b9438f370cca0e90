"""Versions of Debian packages, compared as dpkg does (deb-version(7))."""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache(maxsize=4096)
def compare(left: str, right: str) -> int:
    """Less than 0, 0, or more: left is older than right, the same, newer."""
    for one, other in zip(_parts(left), _parts(right), strict=True):
        if result := _compare_part(one, other):
            return result
    return 0


def _parts(version: str) -> tuple[str, str, str]:
    """Epoch, upstream version, revision."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return epoch, upstream, revision


def _compare_part(left: str, right: str) -> int:
    while left or right:
        one, other = (re.match(r"\D*", text) for text in (left, right))
        assert one is not None and other is not None  # \D* matches anything
        if result := _compare_text(one[0], other[0]):
            return result
        left, right = left[one.end() :], right[other.end() :]
        first, second = (re.match(r"\d*", text) for text in (left, right))
        assert first is not None and second is not None
        if result := int(first[0] or 0) - int(second[0] or 0):
            return result
        left, right = left[first.end() :], right[second.end() :]
    return 0


def _compare_text(left: str, right: str) -> int:
    """`~` before the end, the end before letters, letters before everything else."""
    for index in range(max(len(left), len(right))):
        one, other = (_weight(text[index : index + 1]) for text in (left, right))
        if one != other:
            return one - other
    return 0


def _weight(character: str) -> int:
    if not character:
        return 0
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256


def holds(version: str, relation: str, wanted: str) -> bool:
    """Whether `version RELATION wanted`; relation is one of << <= = >= >>, or of dpkg's words lt le eq ne ge gt."""
    result = compare(version, wanted)
    return {
        "<<": result < 0, "lt": result < 0, "<=": result <= 0, "le": result <= 0, "=": result == 0, "eq": result == 0,
        "ne": result != 0, ">=": result >= 0, "ge": result >= 0, ">>": result > 0, "gt": result > 0,
    }[relation]  # fmt: skip
