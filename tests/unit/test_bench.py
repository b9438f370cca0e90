"""bench/, as far as nothing is timed: medians and ratios, the table, what counts as "no change", who belongs to a process tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import fleet, job, measure, programs, report, subjects
from bench.errors import BenchError
from bench.fleet import Fleet
from bench.measure import Process
from bench.report import Measured, Results


def measured(**medians: float | None) -> list[Measured]:
    """Five subjects, each seen three times; None: it could not be measured."""
    titles = {
        "empty": "the empty Pulumi program: `up`",
        "up": "homelab: `up`",
        "refresh": "homelab: `up --refresh`",
        "pyinfra": "pyinfra: the same job",
        "ansible": "Ansible: the same job",
    }
    values = {"empty": 1.0, "up": 1.5, "refresh": 1.2, "pyinfra": 2.0, "ansible": 6.0, **medians}
    found = []
    for name, median in values.items():
        if median is None:
            found.append(Measured(name, titles[name], failure="wanted: it\nfound:  nothing"))
        else:
            found.append(Measured(name, titles[name], [median * 3, median / 2, median], [0.25] * 3, 100_000_000, 1, 13))
    return found


def row(text: str, title: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_target_is_median_to_median() -> None:
    by_name = {one.name: one for one in measured()}
    values = [target.value(by_name) for target in report.TARGETS]
    assert values == pytest.approx([0.5, 0.8, 0.6, 0.2])  # the first is a difference


def test_a_line_shows_the_median_the_range_every_ratio_and_whether_it_is_what_is_wanted() -> None:
    cells = row(report.table(measured()), "homelab: `up --refresh`")
    assert cells == [
        "homelab: `up --refresh`", "1.20", "0.60–3.60", "0.80 × homelab; 0.60 × pyinfra; 0.20 × Ansible",
        "at most 1.4, met; at most 0.7, met; at most 0.15, **missed**", "100", "0.25", "1, 13", "",
    ]  # fmt: skip


def test_what_is_exactly_the_limit_meets_it() -> None:
    assert row(report.table(measured(empty=1.0, up=1.5)), "homelab: `up` ")[3:5] == [
        "0.50 s beyond the empty Pulumi program", "at most 0.5 s, met",
    ]  # fmt: skip


def test_what_could_not_be_measured_is_said_and_breaks_no_other_line() -> None:
    results = Results(again=measured(pyinfra=None), downtime=[Measured("attached", "it gets a card")])
    page = report.markdown("2026-01-31", results, {"Python": "3.11"})
    assert row(page, "pyinfra")[1] == "not measured"
    assert row(page, "homelab: `up --refresh`")[3:5] == [
        "0.80 × homelab; not measured; 0.20 × Ansible",
        "at most 1.4, met; at most 0.7; at most 0.15, **missed**",
    ]
    assert row(page, "it gets a card")[1] == "not measured"
    assert "- pyinfra: the same job: wanted: it found: nothing" in page
    assert "- Python: 3.11" in page


def test_every_line_of_the_table_has_as_many_cells_as_its_head() -> None:
    lines = report.table(measured(ansible=None)).splitlines()
    assert {line.count("|") for line in lines} == {len(report.HEAD) + 1}


def a_fleet(hosts: int, seconds: float) -> Fleet:
    return Fleet(
        hosts, dict.fromkeys(fleet.VERBS, seconds), dict.fromkeys(fleet.VERBS, 1.25), 50_000_000, hosts * 90_000
    )


def test_stacks_of_several_sizes_are_told_side_by_side_with_what_each_further_host_adds() -> None:
    results = Results(fleets=[a_fleet(12, 13.0), a_fleet(1, 2.0)])
    page = report.markdown("2026-01-31", results, {})
    assert "| 12 | 13.0 (1.2) | 13.0 (1.2) | 13.0 (1.2) | 13.0 (1.2) | 50 | 1.08 |" in page
    assert row(page, "no change") == ["no change", "6.5", "1.00", "0.00"]
    assert row(page, "the state")[1:3] == ["12.0", "0.090 MB"]
    assert report.as_json("2026-01-31", results, {})["fleets"][1]["stateBytes"] == 90_000
    assert "further host" not in report.markdown("2026-01-31", Results(fleets=[a_fleet(4, 2.0)]), {})
    assert "hosts |" not in report.markdown("2026-01-31", Results(), {})


def test_a_first_run_on_a_real_kernel_is_compared_with_the_script() -> None:
    floor = [Measured("up", "ours", [66.0]), Measured("script", "a script: it", [60.0])]
    page = report.markdown("2026-01-31", Results(floor=floor), {})
    assert row(page, "ours")[3:5] == ["1.10 × a script", "at most 1.2, met"]
    assert report.as_json("2026-01-31", Results(floor=floor), {})["floorRatios"][0]["ratio"] == 1.1


def test_a_first_run_is_compared_with_both_peers() -> None:
    first = [
        Measured("up", "ours", [6.0]),
        Measured("pyinfra", "pyinfra: it", [4.0]),
        Measured("ansible", "Ansible: it", [10.0]),
    ]
    for one in first:
        one.cpu.append(1.0)
        one.host_cpu.append(2.5)
        one.host_programs = 120
    page = report.markdown("2026-01-31", Results(first=first), {})
    assert row(page, "ours")[3:] == [
        "1.50 × pyinfra; 0.60 × Ansible", "at most 1.4, **missed**; at most 0.5, **missed**", "", "1.00", "", "120, 2.50",
    ]  # fmt: skip
    assert report.as_json("2026-01-31", Results(first=first), {})["firstRatios"][0]["ratio"] == 1.5


def test_how_long_a_vm_is_off_is_told_beside_its_own_shutdown_and_start() -> None:
    both = [Measured("own", "by hand", [0.5]), Measured("attached", "it gets a card", [3.0, 1.5, 1.0])]
    page = report.markdown("2026-01-31", Results(downtime=both), {})
    assert row(page, "it gets a card") == ["it gets a card", "1.50", "1.00–3.00", "+1.00"]
    assert row(page, "by hand")[3] == ""


def test_a_handover_is_told_beside_the_bare_hookscript() -> None:
    both = [Measured("bareTake", "bare", [0.5]), Measured("take", "ours", [3.0, 1.5, 1.0])]
    page = report.markdown("2026-01-31", Results(handover=both), {})
    assert row(page, "ours") == ["ours", "1.50", "1.00–3.00", "3.0 × bare hookscript"]
    values = report.as_json("2026-01-31", Results(handover=both), {})
    assert row(page, "bare")[3] == "" and values["handover"]["take"]["median"] == 1.5


def test_the_json_holds_every_run_and_every_ratio() -> None:
    values = json.loads(json.dumps(report.as_json("2026-01-31", Results(again=measured(ansible=None)), {})))
    assert values["subjects"]["up"]["seconds"] == [4.5, 0.75, 1.5]
    assert values["subjects"]["ansible"]["median"] is None
    first, *others = values["ratios"]
    assert first == {"subject": "up", "base": "empty", "beyondSeconds": 0.5, "wanted": 0.5}
    assert [(one["subject"], one["base"], one["ratio"] and round(one["ratio"], 6)) for one in others] == [
        ("refresh", "up", 0.8),
        ("refresh", "pyinfra", 0.6),
        ("refresh", "ansible", None),
    ]


@pytest.mark.parametrize(
    ("output", "changes"),
    [
        ("Resources:\n    10 unchanged\n\nDuration: 2s\n", None),
        ("Resources:\n    ~ 4 updated\n    +-1 replaced\n    5 unchanged\n", "~ 4 updated; +-1 replaced"),
        ("error: no stack named 'bench' found\n", "no summary of resources"),
    ],
)
def test_pulumi_changed_nothing_only_if_all_resources_are_unchanged(output: str, changes: str | None) -> None:
    assert subjects.pulumi_changes(output) == changes


@pytest.mark.parametrize(
    ("output", "changes"),
    [
        ("    Grand total           8       -         -       8           \n", None),
        ("    Grand total           8       6         -       2           \n", "6 changed"),
        ("    Grand total           8       -         1       7           \n", "1 failed"),
        ("--> Connecting to hosts...\n", "no totals"),
    ],
)
def test_pyinfra_changed_nothing_only_if_its_totals_say_so(output: str, changes: str | None) -> None:
    assert subjects.pyinfra_changes(output) == changes


@pytest.mark.parametrize(
    ("output", "changes"),
    [
        ("pve    : ok=5    changed=0    unreachable=0    failed=0    skipped=0\n", None),
        ("pve    : ok=5    changed=2    unreachable=0    failed=0    skipped=0\n", "changed=2"),
        ("pve    : ok=0    changed=0    unreachable=1    failed=0    skipped=0\n", "unreachable=1"),
        ("PLAY RECAP ****\n", "no recap"),
    ],
)
def test_ansible_changed_nothing_only_if_its_recap_says_so(output: str, changes: str | None) -> None:
    assert subjects.ansible_changes(output) == changes


def test_a_process_tree_is_a_session_and_every_descendant_of_it() -> None:
    found = [
        Process(1, 0, 1),
        Process(10, 1, 10),  # the command
        Process(11, 10, 10),
        Process(12, 1, 10),  # its parent has ended, its session is the command's
        Process(13, 11, 13),  # a session of its own, but a descendant
        Process(14, 13, 13),
        Process(20, 1, 20),
    ]
    assert measure.tree(10, found) == {10, 11, 12, 13, 14}


def test_a_process_whose_name_holds_brackets_is_read(tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "stat").write_text("42 (a) b (c) S 7 42 41 0 -1 4194304 1 2 3\n")
    (tmp_path / "self").mkdir()
    assert measure.processes(tmp_path) == [Process(42, 7, 41)]


def test_a_process_that_became_a_program_counts_once_and_one_that_found_none_does_not() -> None:
    trace = """\
101 execve("/bin/sh", ..., ... /* 12 vars */) = 0
101 execve("/usr/bin/stat", ..., ... /* 12 vars */) = 0
102 execve("/usr/local/bin/qm", ..., ... /* 12 vars */) = -1 ENOENT (No such file or directory)
102 execve("/usr/sbin/qm", ..., ... /* 12 vars */ <unfinished ...>
103 +++ exited with 0 +++
102 <... execve resumed>) = 0
104 execve("/usr/bin/false", ..., ... /* 1 var */) = -1 EACCES (Permission denied)
"""
    assert programs.started(trace) == 2


def test_memory_is_the_proportional_set_size_and_nothing_for_one_that_has_ended() -> None:
    rollup = b"561e8000-7ffc3000 ---p 00000000 00:00 0 [rollup]\nRss: 1780 kB\nPss: 188 kB\nPss_Anon: 116 kB\n"
    assert measure.parse_pss(rollup) == 188 * 1024
    assert measure.parse_pss(b"") == 0


def host(root: Path, cmdline: str) -> Path:
    """As much of a host after `up` as the job is taken from."""
    for path in job.PATHS:
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_text(path)
    (root / "proc").mkdir()
    (root / "proc/cmdline").write_text(cmdline)
    for address, driver in (("0000:01:00.0", "vfio-pci"), ("0000:02:00.0", "nvme")):
        device = root / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "device").write_text("0x2b85\n")
        (device / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
    return root


def test_the_job_is_what_up_added_to_a_stock_host(tmp_path: Path) -> None:
    taken = job.collect(tmp_path / "job", host(tmp_path / "host", "quiet amd_iommu=on\n"), ["quiet"])
    assert taken.words == ["amd_iommu=on"]
    assert taken.functions == {"0000:01:00.0": "10de:2b85"}
    assert taken.differences(tmp_path / "host") == []


def test_a_peer_that_leaves_other_bytes_or_modes_is_not_doing_the_same_job(tmp_path: Path) -> None:
    root = host(tmp_path / "host", "quiet\n")
    taken = job.collect(tmp_path / "job", root, ["quiet"])
    (root / job.PATHS[0][1:]).write_text("something else")
    (root / job.PATHS[2][1:]).chmod(0o700)
    (root / job.PATHS[5][1:]).unlink()
    assert taken.differences(root) == [job.PATHS[0], job.PATHS[2], job.PATHS[5]]


def test_a_host_without_the_programs_files_is_refused_by_name(tmp_path: Path) -> None:
    root = host(tmp_path / "host", "quiet\n")
    (root / job.PATHS[1][1:]).unlink()
    with pytest.raises(BenchError, match="zz-homelab-vfio"):
        job.collect(tmp_path / "job", root, [])


def test_a_command_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="to run no-such-tool"):
        measure.run([str(tmp_path / "no-such-tool")], tmp_path, {}, tmp_path / "log")


def test_a_run_keeps_the_exit_code_and_both_outputs(tmp_path: Path) -> None:
    done, peak = measure.peak_memory(
        ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], tmp_path, {}, tmp_path / "log"
    )
    assert (done.code, sorted(done.output.split())) == (3, ["err", "out"])
    assert done.seconds > 0
    assert peak < 1_000_000_000


def test_the_peers_manage_every_file_of_the_job() -> None:
    for source in ("pyinfra/deploy.py", "ansible/playbook.yml"):
        text = (subjects.FOLDER / source).read_text(encoding="utf-8")
        assert [path for path in job.PATHS if path not in text] == [], source
