"""Words of a kernel command line, as texts."""

from __future__ import annotations

from collections.abc import Iterable


def without_words(text: str, words: Iterable[str]) -> str:
    """The text without these words, everything else as it stands (also "quoted values")."""
    padded = f" {text} "
    for word in words:
        while f" {word} " in padded:
            padded = padded.replace(f" {word} ", " ")
    return padded.removeprefix(" ").removesuffix(" ")


def missing_words(words: str, cmdline: str) -> list[str]:
    """The words of `words` that `cmdline` lacks. An IOMMU word may have more options there (`intel_iommu=on,sm_on`)."""
    present = cmdline.split()
    return [
        word
        for word in words.split()
        if word not in present
        and not ("iommu=" in word and any(present_word.startswith(f"{word},") for present_word in present))
    ]
