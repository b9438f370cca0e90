"""The tables of docs/nvidia*.md and host-failures.md, from the data: `python -m docs.tables.nvidia` writes them."""

from __future__ import annotations

import re
from pathlib import Path

from docs.tables.markdown import table, with_tables
from homelab.facts.kernel_log import Sign, StartSign, signs, start_signs
from homelab.nvidia.compatibility import Facts, load
from homelab.nvidia.versions import parse
from homelab.symptoms import SourcedSymptom, symptoms

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"


def pages() -> dict[Path, str]:
    """The pages with their texts."""
    paths = (*sorted(DOCUMENTS.glob("nvidia*.md")), DOCUMENTS / "host-failures.md")
    return {path: path.read_text(encoding="utf-8") for path in paths}


def written(text: str, data: Facts | None = None) -> str:
    """A document's text with its tables made from the data.

    :raises KeyError: the text has a marker of a table that doesn't exist.
    """
    return with_tables(text, all_tables(data or load()))


def all_tables(data: Facts) -> dict[str, str]:
    """The tables: name -> Markdown."""
    return {
        "cards": _cards(data),
        "branches": _branches(data),
        "cuda": _cuda(data),
        "distributions": _distributions(data),
        "installers": table(("installer", "SHA-256"), [*data.installers.items()]),
        "symptoms": _symptoms(),
        "signs": "".join(_listed(row, row.why) for row in signs()),
        "starts": "".join(_listed(row, row.why) for row in start_signs()),
    }


def _cards(data: Facts) -> str:
    rows = [
        (
            row.name,
            ", ".join(block.replace("-", "–") for block in row.ranges),
            str(row.first),
            str(row.last) if row.last in data.branches or row.modules == "proprietary" else "",
            "open or proprietary" if row.modules == "both" else row.modules,
            f"{row.cuda[0] or ''} – {row.cuda[1] or ''}",
        )
        for row in reversed(data.generations)
    ]
    return table(("cards", "device ids (10de:…)", "driver from", "last branch", "modules", "CUDA"), rows)


def _branches(data: Facts) -> str:
    rows = [
        (
            f"{branch}{' (recommended)' if branch == data.recommended[0] else ''}",
            ends,
            " or ".join(data.flavours(branch)),
        )
        for branch, ends in sorted(data.branches.items(), reverse=True)
    ]
    return table(("branch", "ends", "modules"), rows)


def _cuda(data: Facts) -> str:
    rows = [
        (release, str(data.cuda[release]), str(data.cuda_majors[parse(release).major]))
        for release in data.cuda_releases
    ]
    return table(("CUDA", "came with", "runs, with limits, from"), rows)


def _distributions(data: Facts) -> str:
    rows = [(row.text, ", ".join(row.targets), row.path, row.key.fingerprint) for row in data.distributions]
    return table(("system", "as", "CUDA repository", "its key"), rows)


def _symptoms() -> str:
    """The symptoms with their causes, as lists below the program that says them first."""
    lists: dict[str, list[str]] = {}
    for row in symptoms():
        lists.setdefault(row.where.split(",")[0], []).append(_listed(row, _causes(row)))
    return "\n".join(f"**{where}**\n\n{''.join(rows)}" for where, rows in lists.items())


def _listed(row: SourcedSymptom | Sign | StartSign, why: str) -> str:
    return f"- **{row.name}**: {why}. *Seen {row.seen}: {row.source}*\n"


def _causes(row: SourcedSymptom) -> str:
    """All causes; of those that begin with the same clause, such as "CUDA's error 3", the first."""
    texts = [_without_values(cause.why) for cause in row.causes]
    first = {re.split("[:;] |, in ", text)[0]: text for text in reversed(texts)}
    return "; or ".join(reversed(first.values()))


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
