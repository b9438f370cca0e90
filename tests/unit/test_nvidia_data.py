"""nvidia/data: every row has its source, can be reached, and agrees with the others and with the document."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from docs.tables.nvidia import all_tables, pages, written
from homelab.nvidia.compatibility import FOLDER, Branch, Compatibility, Generation, load
from homelab.nvidia.versions import flavour_of_kernel, of_kernel, of_package, parse

DATA = load()


@pytest.mark.parametrize("row", DATA.gpus.generations, ids=lambda row: row.name)
def test_every_block_of_a_generation_leads_to_it(row: Generation) -> None:
    for first, last in row.ranges:
        assert first <= last
        assert DATA.generation(f"{first:04x}") is DATA.generation(f"{last:04x}") is row


@pytest.mark.parametrize(
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
    ],
)
def test_well_known_cards_are_of_their_generation(device: str, generation: str) -> None:
    found = DATA.generation(device)
    assert found is not None and found.name == generation


@pytest.mark.parametrize("row", DATA.branches.values(), ids=lambda row: str(row.branch))
def test_a_branchs_newest_release_is_of_it(row: Branch) -> None:
    assert row.newest is None or row.newest.major == row.branch


def test_the_recommended_branch_is_maintained_and_knows_all_that_is_not_legacy() -> None:
    row = DATA.branches[DATA.recommended]
    assert not row.ended(datetime.date(2026, 11, 24)) and len(row.flavours) == 2


def test_a_branch_has_ended_when_its_month_is_over() -> None:
    row = DATA.branches[570]
    assert not row.ended(datetime.date(2026, 2, 28))
    assert row.ended(datetime.date(2026, 3, 1))


def test_every_release_of_cuda_has_a_floor() -> None:
    for row in DATA.cuda.releases:
        floor = DATA.cuda_major(row.release.major)
        assert floor is not None and floor.least <= row.least
        assert DATA.cuda_release(parse(f"{row.release}.1")) is row
    assert {row.major for row in DATA.cuda.majors} == {row.release.major for row in DATA.cuda.releases}


def test_620_is_the_newer_branch_of_long_term_support() -> None:
    row = DATA.branches[620]
    assert (row.kind, str(row.newest), row.ends) == ("LTSB", "620.70.06", "2029-09")
    assert not row.ended(datetime.date(2029, 9, 30)) and row.ended(datetime.date(2029, 10, 1))


def test_the_repository_for_ubuntu_26_04_has_a_key_of_its_own() -> None:
    rows = {(row.id, row.version): row for row in DATA.packaging.distributions}
    row = rows["ubuntu", "26.04"]
    assert (row.path, row.key.file) == ("ubuntu2604/x86_64", "60DF8A40.pub")
    assert row.key.fingerprint == "14BAFBC7562AD710CA04E69905FBB6DA60DF8A40" and row.targets == ("vm", "lxc")


@pytest.mark.parametrize(
    "path", [one for one in sorted(FOLDER.glob("*.yaml")) if one.stem != "symptoms"], ids=lambda path: path.stem
)
def test_every_file_says_of_which_day_it_is(path: Path) -> None:
    day = yaml.safe_load(path.read_text(encoding="utf-8"))["as-of"]
    assert isinstance(day, datetime.date) and DATA.as_of is not None and DATA.as_of <= day


@pytest.mark.parametrize(("days", "old"), [(0, False), (90, False), (91, True), (400, True)])
def test_how_old_the_data_is_and_when_that_matters(days: int, old: bool) -> None:
    assert DATA.as_of is not None
    text = DATA.known_releases(DATA.as_of + datetime.timedelta(days))
    assert f"the newest branch is {DATA.newest_branch}, " in text and f"of {DATA.as_of}, {days} days old" in text
    assert ("update this program" in text) is old


@pytest.mark.parametrize("distribution", DATA.packaging.distributions, ids=lambda row: f"{row.id}-{row.version}")
def test_every_distribution_has_names_for_the_recommended_and_the_newest_branch(distribution: object) -> None:
    row = next(one for one in DATA.packaging.distributions if one is distribution)
    for branch in (DATA.recommended, DATA.newest_branch):
        assert DATA.names(row.id, branch) is not None
    assert DATA.distribution(row.id, row.version) is row


def test_a_branchs_suffix_stops_at_580() -> None:
    old, new = DATA.names("ubuntu", 580), DATA.names("ubuntu", 590)
    assert old and new and "{branch}" in old.open[0] and "{branch}" not in new.open[0]


def test_a_row_without_a_source_is_refused(tmp_path: Path) -> None:
    for path in FOLDER.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    text = yaml.safe_load((tmp_path / "cuda.yaml").read_text(encoding="utf-8"))
    del text["releases"][0]["source"]
    (tmp_path / "cuda.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    with pytest.raises(ValidationError, match=r"releases\.0\.source"):
        Compatibility(tmp_path)


def test_two_generations_with_the_same_ids_are_refused(tmp_path: Path) -> None:
    for path in FOLDER.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    text = (tmp_path / "gpus.yaml").read_text(encoding="utf-8").replace("2300-23ff", "2300-2480")
    (tmp_path / "gpus.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValidationError, match="share the ids"):
        Compatibility(tmp_path)


def test_the_documents_have_the_tables_of_the_data() -> None:
    texts = pages().values()
    assert [written(text) for text in texts] == [*texts], "run `python -m docs.tables.nvidia`"
    assert all("".join(texts).count(f"<!-- table: {name} -->") == 1 for name in all_tables(DATA))


def test_versions_are_compared_as_numbers() -> None:
    assert parse("570.26") < parse("570.124.06") < parse("580") < parse("580.65.06") < parse("580.105.08")
    assert str(parse("580.105.08")) == "580.105.08"
    with pytest.raises(ValueError, match="dotted numbers"):
        parse("580-open")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("580.105.08-1ubuntu1", "580.105.08"),
        ("580.173.02-0ubuntu0.24.04.1", "580.173.02"),
        ("1:550.163.01-4~bpo13+1", "550.163.01"),
        ("580.65.06", "580.65.06"),
        ("unknown", None),
    ],
)
def test_a_packages_version_has_the_drivers_inside(text: str, version: str | None) -> None:
    found = of_package(text)
    assert (found.text if found else None) == version


@pytest.mark.parametrize(
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
