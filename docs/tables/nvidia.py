"""The tables of docs/nvidia.md and its pages (docs/nvidia-*.md), made from the data:
`python -m docs.tables.nvidia` rewrites them."""

from __future__ import annotations

import re
from pathlib import Path

from docs.tables.markdown import table, with_tables
from homelab.nvidia.compatibility import Compatibility, load
from homelab.symptoms import symptoms

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"
# Where a failure shows that is the driver's, not that of what is installed beside it or of a container's engine.
_DRIVERS = re.compile("kernel log|nvidia-smi|modprobe|Windows")


def pages() -> dict[Path, str]:
    """The pages with their texts."""
    return {path: path.read_text(encoding="utf-8") for path in sorted(DOCUMENTS.glob("nvidia*.md"))}


def written(text: str, data: Compatibility | None = None) -> str:
    """A document's text with its tables made from the data.

    :raises KeyError: the text has a marker of a table that doesn't exist.
    """
    return with_tables(text, all_tables(data or load()))


def all_tables(data: Compatibility) -> dict[str, str]:
    """The tables: name -> Markdown."""
    return {
        "cards": _cards(data),
        "branches": _branches(data),
        "cuda": _cuda(data),
        "distributions": _distributions(data),
        "installers": _installers(data),
        "symptoms-of-the-driver": _symptoms(of_the_driver=True),
        "other-symptoms": _symptoms(of_the_driver=False),
    }


def _cards(data: Compatibility) -> str:
    rows = [
        (
            generation.name,
            ", ".join(f"{first:04x}–{last:04x}" for first, last in generation.ranges),
            str(generation.least),
            str(generation.last_branch or ""),
            " or ".join(generation.flavours),
            f"{generation.first_cuda or ''} – {generation.last_cuda or ''}",
            generation.evidence,
        )
        for generation in reversed(data.gpus.generations)
    ]
    return table(("cards", "device ids (10de:…)", "driver from", "last branch", "modules", "CUDA", "evidence"), rows)


def _branches(data: Compatibility) -> str:
    rows = [
        (
            f"{row.branch}{' (recommended)' if row.branch == data.recommended else ''}",
            row.kind,
            str(row.newest or ""),
            row.ends or "",
            " or ".join(row.flavours),
            row.evidence,
        )
        for row in sorted(data.branches.values(), key=lambda row: -row.branch)
    ]
    return table(("branch", "kind", "newest known", "ends", "modules", "evidence"), rows)


def _cuda(data: Compatibility) -> str:
    rows = []
    for row in reversed(data.cuda.releases):
        floor = data.cuda_major(row.release.major)
        rows.append((str(row.release), str(row.least), str(floor.least if floor else ""), row.evidence))
    return table(("CUDA", "came with", "runs, with limits, from", "evidence"), rows)


def _distributions(data: Compatibility) -> str:
    rows = [
        (
            f"{row.id.capitalize()} {row.version}",
            ", ".join(row.targets),
            row.path,
            " and ".join(map(str, row.drivers or ())),
            str(row.first_cuda or ""),
            row.key.fingerprint,
            row.evidence,
        )
        for row in data.packaging.distributions
    ]
    return table(
        ("system", "as", "CUDA repository", "branches in its repositories", "first CUDA there", "its key", "evidence"),
        rows,
    )


def _installers(data: Compatibility) -> str:
    rows = [(version, row.sha256, row.evidence) for version, row in data.installers.items()]
    return table(("installer", "SHA-256", "evidence"), rows)


def _symptoms(*, of_the_driver: bool) -> str:
    rows = [
        (row.name, row.where, _without_values("; ".join(cause.why for cause in row.causes)))
        for row in symptoms()
        if bool(_DRIVERS.search(row.where)) == of_the_driver
    ]
    return table(("symptom", "where", "causes"), rows)


def _without_values(text: str) -> str:
    """A message's text without the values that it gets where it is said."""
    return re.sub(r"\{\w+\}", "…", re.sub(r" \(\{\w+\}\)", "", text))


def main() -> None:
    """Write the tables of the pages."""
    data = load()
    for path, text in pages().items():
        path.write_text(written(text, data), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
