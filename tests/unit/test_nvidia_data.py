"""nvidia/data/facts.yaml: every row has its source, can be reached, and agrees with the others and with the document."""

from __future__ import annotations

import datetime
import re
from typing import get_args

import pytest

from docs.tables.nvidia import all_tables, pages, written
from homelab.nvidia.compatibility import FILE, Distribution, Generation, load
from homelab.nvidia.settings import Cudnn
from homelab.nvidia.versions import fits, flavour_of_kernel, of_kernel, parse, reaches
from tests.rows import rows

DATA = load()


def test_only_a_pinned_image_is_run() -> None:
    assert "@sha256:" in DATA.toolkit.image


def test_each_cudnn_of_the_settings_has_its_packages() -> None:
    known = [row.version for row in DATA.cuda_libraries if row.name == "cudnn"]
    assert known == [*get_args(get_args(Cudnn)[0])]


@rows("row", DATA.generations, ids=lambda row: row.name)
def test_every_block_of_a_generation_leads_to_it(row: Generation) -> None:
    for block in row.ranges:
        assert re.fullmatch(r"[0-9a-f]{4}-[0-9a-f]{4}", block) and block[:4] <= block[5:]
        assert DATA.generation(block[:4]) is DATA.generation(block[5:]) is row


@rows(
    ("device", "generation"),
    [
        ("128b", "Kepler"),
        ("13c2", "Maxwell"),
        ("15f8", "Pascal"),
        ("1b06", "Pascal"),
        ("1d01", "Pascal"),
        ("1db4", "Volta"),
        ("1eb8", "Turing"),
        ("1f82", "Turing"),
        ("2184", "Turing"),
        ("20b0", "Ampere"),
        ("2204", "Ampere"),
        ("25a0", "Ampere"),
        ("2331", "Hopper"),
        ("2684", "Ada"),
        ("28e0", "Ada"),
        ("2b85", "Blackwell"),
        ("2c02", "Blackwell"),
        ("2d04", "Blackwell"),
        ("2f04", "Blackwell"),
        ("2901", "Blackwell"),
        ("3182", "Blackwell"),
        ("3f01", "unknown"),
    ],
)
def test_well_known_cards_are_of_their_generation(device: str, generation: str) -> None:
    assert DATA.generation(device).name == generation


def test_no_two_generations_have_the_same_ids() -> None:
    blocks = sorted(block for row in DATA.generations for block in row.ranges)
    assert all(block[5:] < following[:4] for block, following in zip(blocks, blocks[1:], strict=False))


def test_the_recommended_branches_are_maintained_and_the_first_knows_all_that_is_not_legacy() -> None:
    today = datetime.date(2026, 11, 24)
    assert {*DATA.recommended} <= {*DATA.branches} and not any(DATA.ended(one, today) for one in DATA.recommended)
    assert len(DATA.flavours(DATA.recommended[0])) == 2


def test_a_branch_has_ended_when_its_month_is_over() -> None:
    assert all(re.fullmatch(r"(20\d\d-(0[1-9]|1[0-2]))?", ends) for ends in DATA.branches.values())
    assert not DATA.ended(570, datetime.date(2026, 2, 28)) and DATA.ended(570, datetime.date(2026, 3, 1))
    assert not DATA.ended(615, datetime.date(2036, 3, 1)), "it has no day"


def test_every_release_of_cuda_has_a_floor() -> None:
    for text, least in DATA.cuda.items():
        assert DATA.cuda_majors[parse(text).major] <= least is DATA.least_for(parse(f"{text}.1"))
    assert {*DATA.cuda_majors} == {parse(text).major for text in DATA.cuda}


def test_620_is_the_newer_branch_of_long_term_support() -> None:
    assert DATA.branches[620] == "2029-09" and max(DATA.branches) == 620
    assert not DATA.ended(620, datetime.date(2029, 9, 30)) and DATA.ended(620, datetime.date(2029, 10, 1))


def test_the_repository_for_ubuntu_26_04_has_a_key_of_its_own() -> None:
    (row,) = (row for row in DATA.distributions if row.text == "Ubuntu 26.04")
    assert (row.path, row.key.file) == ("ubuntu2604/x86_64", "60DF8A40.pub")
    assert row.key.fingerprint == "14BAFBC7562AD710CA04E69905FBB6DA60DF8A40" and row.targets == ("vm", "lxc")


@pytest.mark.parametrize(("days", "old"), [(0, False), (90, False), (91, True), (400, True)])
def test_how_old_the_data_is_and_when_that_matters(days: int, old: bool) -> None:
    text = DATA.known_releases(DATA.as_of + datetime.timedelta(days))
    assert f"the newest branch is {max(DATA.branches)}, " in text and f"of {DATA.as_of}, {days} days old" in text
    assert ("update this program" in text) is old


@rows("row", DATA.distributions, ids=lambda row: row.text)
def test_every_distribution_has_names_and_a_key(row: Distribution) -> None:
    assert re.fullmatch(r"[0-9A-F]{40}", row.key.fingerprint) and any(names.id == row.id for names in DATA.names)


def test_an_installer_is_known_by_its_whole_checksum() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) and parse(version) for version, sha256 in DATA.installers.items())


def test_every_row_has_its_source_beside_it() -> None:
    """Behind it, or in a comment above it that is of the row, or of its block."""
    text = FILE.read_text(encoding="utf-8")
    rows = [line for line in text.split("\ngenerations:")[1].split("\n\n")[0].splitlines() if "- {name" in line]
    assert text.count("  # primary: ") + text.count("  # report: ") >= len(rows)
    blocks = {block.partition(":")[0]: block for block in re.split(r"\n(?=[a-z-]+:)", text)}
    assert all(
        re.search(r" # .*(primary|report|unconfirmed): ", line) for line in blocks["branches"].splitlines()[1:15]
    )


def test_the_documents_have_the_tables_of_the_data() -> None:
    texts = pages().values()
    assert [written(text) for text in texts] == [*texts], "run `python -m docs.tables.nvidia`"
    assert all("".join(texts).count(f"<!-- table: {name} -->") == 1 for name in all_tables(DATA))


def test_versions_are_compared_as_numbers() -> None:
    assert parse("570.26") < parse("570.124.06") < parse("580") < parse("580.65.06") < parse("580.105.08")
    assert str(parse("580.105.08")) == "580.105.08"
    with pytest.raises(ValueError, match="580-open"):
        parse("580-open")


def test_a_branch_is_each_of_its_releases_and_counts_as_its_newest() -> None:
    assert fits(parse("580.105.08"), parse("580")) and not fits(parse("580.105.08"), parse("580.105"))
    assert reaches(parse("580"), parse("580.105.08")) and not reaches(parse("580.65.06"), parse("580.105.08"))
    assert not reaches(parse("580"), parse("590"))


@rows(
    ("release", "numbers", "flavour"),
    [
        ("6.8.0-86-generic", "6.8.0", "generic"),
        ("6.12.48+deb13-amd64", "6.12.48", "amd64"),
        ("6.1.0-40-cloud-amd64", "6.1.0", "cloud-amd64"),
        ("6.8.0-1008-kvm", "6.8.0", "kvm"),
        ("6.17.13-2-pve", "6.17.13", "pve"),
    ],
)
def test_a_kernels_release_tells_numbers_and_flavour(release: str, numbers: str, flavour: str) -> None:
    version = of_kernel(release)
    assert version is not None and version.text == numbers
    assert flavour_of_kernel(release) == flavour
