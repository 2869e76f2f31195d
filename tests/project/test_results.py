"""Measured tables say what they measured, and are stale when that has changed."""
# ruff: noqa: E402

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import provenance
import release_check
import results


def test_every_declaration_names_files():
    assert all(provenance.digest(table) for table in provenance.SOURCES)
    reports = {
        path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in ROOT.glob("docs/**/*.json")
    }
    assert reports <= provenance.SOURCES.keys()
    assert provenance.SOURCES.keys() - reports <= set(provenance.LONG), "only those of hours may be missing"
    assert set(provenance.LONG) <= set(provenance.RESUMABLE) <= provenance.SOURCES.keys()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two sources and one table that measures one of them."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "measured.py").write_text("x = 1\n")
    (tmp_path / "other.py").write_text("y = 1\n")
    for module in (provenance, results):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "SOURCES", {"table": ("mea*.py",)})
    monkeypatch.setattr(provenance.Machine, "here", lambda: provenance.Machine("a CPU", "AVX512", "abc"))
    return tmp_path


def test_a_table_is_stale_when_a_source_that_it_declares_has_changed(project):
    assert provenance.stale() == {"table": "there is no report"}
    path = provenance.report_of("table")
    path.write_text("{}")
    assert provenance.stale() == {"table": "it does not say which sources it measured"}
    path.write_text(json.dumps({"measured": {"commit": "abc", "sources": provenance.digest("table")}}))
    assert provenance.stale() == {}
    (project / "other.py").write_text("y = 2\n")
    assert provenance.stale() == {}
    (project / "measured.py").write_text("x = 2\n")
    assert provenance.stale() == {"table": "its sources changed since abc"}
    (project / "measured.py").rename(project / "moved.py")
    with pytest.raises(FileNotFoundError, match=r"table declares mea\*.py, and no file is named so"):
        provenance.stale()


def played(project, monkeypatch, act=lambda: None, code=0):
    """Play the measuring: one row, whose value is the instruction set; the calls that were made."""
    calls = []

    def run(command, *, cwd, env, check):
        calls.append((command[1:], env["ATEN_CPU_CAPABILITY"]))
        rows = [
            {"neuron": "MSF", "seed": 0, "accuracy": 100.0 if env["ATEN_CPU_CAPABILITY"] == "avx2" else 50.0}
        ]
        Path(command[-1]).write_text(json.dumps({"threads": 1, "seconds": 2.0, "rows": rows}))
        act()
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(results.subprocess, "run", run)
    return calls


def test_a_table_is_measured_with_every_instruction_set(project, monkeypatch):
    calls = played(project, monkeypatch)
    report = results.measure("table", results.ways_of("table"), None)
    assert [(command[0], name) for command, name in calls] == [
        ("examples/table.py", s) for s in ("avx2", "avx512")
    ]
    assert [(row["instructions"], row["accuracy"]) for row in report["rows"]] == [
        ("AVX2", 100.0),
        ("AVX512", 50.0),
    ]
    assert report["seconds"] == 4.0
    assert report["measured"] == {
        "commit": "abc",
        "cpu": "a CPU",
        "instructions": ["AVX2", "AVX512"],
        "threads": [1],
        "sources": provenance.digest("table"),
    }
    assert provenance.line(report) == "a CPU, AVX2 and AVX512, 1 thread, commit abc"
    results.write("table", report)
    assert provenance.stale() == {}


def test_the_demo_is_measured_on_one_thread_and_on_all(monkeypatch):
    monkeypatch.setattr(results, "instruction_sets", lambda: ["AVX2", "AVX512"])
    monkeypatch.setattr(results.os, "cpu_count", lambda: 4)
    ways = results.ways_of("quickstart")
    assert [(way.instructions, way.threads) for way in ways] == [
        *(("AVX2", 1), ("AVX512", 1)),
        *(("AVX2", 4), ("AVX512", 4)),
    ]
    assert ways[2].environment()["OMP_NUM_THREADS"] == "4"
    merged = {}
    for way in ways:
        merged = results.merge(merged, {"threads": way.threads, "runs": [{"seed": 0}]}, way)
    assert [(run["instructions"], run["threads"]) for run in merged["runs"]] == [
        (way.instructions, way.threads) for way in ways
    ]
    monkeypatch.setattr(results.os, "cpu_count", lambda: 1)
    assert {way.threads for way in results.ways_of("quickstart")} == {1}


def test_what_failed_or_changed_meanwhile_leaves_the_report_alone(project, monkeypatch):
    played(project, monkeypatch, code=1)
    with pytest.raises(SystemExit, match="table could not be measured; its report is as before"):
        results.measure("table", [results.Way("AVX2")], None)
    played(project, monkeypatch, act=lambda: (project / "measured.py").write_text("x = 3\n"))
    with pytest.raises(SystemExit, match="the sources of table changed while it was measured"):
        results.measure("table", [results.Way("AVX2")], None)
    assert not provenance.report_of("table").exists()


def other_machine(project, monkeypatch, accuracy=100.0, **more):
    """What comes of measuring on a CPU without AVX-512 after one with it; ``more`` is of the report before."""
    played(project, monkeypatch)
    results.write("table", {**results.measure("table", results.ways_of("table"), None), **more})
    (project / "measured.py").write_text("x = 2\n")
    monkeypatch.setattr(provenance.Machine, "here", lambda: provenance.Machine("B CPU", "AVX2", "def"))
    path = provenance.report_of("table")
    report = json.loads(path.read_text())
    report["rows"][0]["accuracy"] = accuracy
    path.write_text(json.dumps(report))
    results.write("table", results.measure("table", results.ways_of("table"), None))
    return json.loads(path.read_text())


def test_rows_of_a_set_that_a_cpu_lacks_stay_where_all_others_repeat(project, monkeypatch):
    report = other_machine(project, monkeypatch)
    assert [(r["instructions"], r["accuracy"]) for r in report["rows"]] == [("AVX2", 100.0), ("AVX512", 50.0)]
    assert report["seconds"] == 4.0  # of all rows
    assert provenance.stale() == {}
    assert provenance.line(report) == (
        "B CPU, AVX2 and AVX512, 1 thread, commit def, with rows since abc: this CPU lacks AVX512, and all it could "
        "repeat came out the same"
    )
    # and once more: they are still of the first commit
    monkeypatch.setattr(provenance.Machine, "here", lambda: provenance.Machine("B CPU", "AVX2", "ghi"))
    results.write("table", results.measure("table", results.ways_of("table"), None))
    report = json.loads(provenance.report_of("table").read_text())
    assert (report["measured"]["commit"], report["measured"]["since"]) == ("ghi", "abc")
    assert len(report["rows"]) == 2
    # where the CPU has the set, all rows are new
    monkeypatch.setattr(provenance.Machine, "here", lambda: provenance.Machine("a CPU", "AVX512", "jkl"))
    results.write("table", results.measure("table", results.ways_of("table"), None))
    report = json.loads(provenance.report_of("table").read_text())
    assert provenance.line(report) == "a CPU, AVX2 and AVX512, 1 thread, commit jkl"
    assert len(report["rows"]) == 2


@pytest.mark.parametrize("change", [{"accuracy": 100.00001}, {"versions": {"torch": "1.0"}}])
def test_rows_of_a_set_that_a_cpu_lacks_go_where_another_came_out_otherwise(project, monkeypatch, change):
    report = other_machine(project, monkeypatch, **change)
    assert [(r["instructions"], r["accuracy"]) for r in report["rows"]] == [("AVX2", 100.0)]
    assert report["measured"]["instructions"] == ["AVX2"]
    assert "since" not in report["measured"]


def test_rows_of_published_weights_stay_with_the_commit_they_were_measured_at():
    old = {
        "measured": {"commit": "old"},
        "rows": [{"neuron": "MSF", "seed": 1}, {"neuron": "theirs", "last": 0.5}],
    }
    report = {"rows": [{"neuron": "MSF", "seed": 1}]}
    results.keep_published(report, old)
    assert report["rows"][1:] == [{"measured": "old", "neuron": "theirs", "last": 0.5}]
    # and where they are measured anew they are not
    report = {"rows": [{"neuron": "MSF", "seed": 1}, {"neuron": "theirs", "last": 0.4}]}
    results.keep_published(report, old)
    assert len(report["rows"]) == 2


# Tables of hours


@pytest.fixture
def long(project, monkeypatch):
    """The table of the project is one of hours, whose report grows."""
    monkeypatch.setattr(provenance, "RESUMABLE", ("table",))
    monkeypatch.setattr(provenance, "LONG", ("table",))
    monkeypatch.setattr(results, "pages", lambda tables: None)
    return provenance.report_of("table")


def grown(path, **more):
    path.write_text(
        json.dumps({"rows": [], "measured": {"commit": "abc", "sources": provenance.digest("table")}, **more})
    )


def test_a_table_of_hours_may_be_missing_or_unfinished_but_not_untrue(project, long):
    assert provenance.stale() == {}
    assert provenance.unfinished() == {"table": "not measured"}
    grown(long, unfinished=[{"seed": 1}, {"seed": 2}])
    assert provenance.stale() == {}
    assert provenance.unfinished() == {"table": "2 rows are missing"}
    grown(long)
    assert provenance.unfinished() == {}
    (project / "measured.py").write_text("x = 2\n")
    assert provenance.stale() == {"table": "its sources changed since abc"}


def main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["results.py", *arguments])
    results.main()
    return capsys.readouterr().out


def test_a_table_of_hours_is_measured_where_it_is_named_alone(project, long, monkeypatch, capsys):
    calls = played(project, monkeypatch)
    how = "left out, it takes hours: table: {}; python tools/results.py table\n"
    assert main(monkeypatch, capsys) == how.format("not measured")
    assert main(monkeypatch, capsys, "--check") == "no table is stale\n" + how.format("not measured")
    grown(long)
    assert main(monkeypatch, capsys) == "the tables of hours are finished\n"
    (project / "measured.py").write_text("x = 2\n")
    assert main(monkeypatch, capsys) == how.format("its sources changed since abc")
    assert calls == []
    main(monkeypatch, capsys, "table")
    assert calls == [(["examples/table.py", "--json", str(long)], "avx512")]  # the best set alone


def test_a_growing_report_is_continued_and_one_that_cannot_be_is_set_aside(
    project, long, monkeypatch, capsys
):
    seen, statuses = [], []

    def call(table, target, way, published):
        seen.append(target.exists())
        if not target.exists():
            grown(target)
        return (statuses or [0]).pop()

    monkeypatch.setattr(results, "call", call)
    grown(long)
    results.go_on("table", ["AVX2", "AVX512"], None)
    assert seen == [True, True]
    before = long.read_text()
    statuses.append(1)
    with pytest.raises(SystemExit, match="table is not finished"):
        results.go_on("table", ["AVX2"], None)
    assert long.read_text() == before
    statuses.append(provenance.OTHER_REPORT)
    results.go_on("table", ["AVX2"], None)
    assert seen[2:] == [True, True, False]
    assert (project / "runs" / "table-abc.json").read_text() == before
    assert "the report is set aside as runs/table-abc.json" in capsys.readouterr().out


def test_a_growing_report_that_was_set_aside_gives_the_rows_of_a_set_that_the_cpu_lacks(
    project, long, monkeypatch
):
    monkeypatch.setattr(provenance.Machine, "here", lambda: provenance.Machine("B CPU", "AVX2", "def"))
    old = [{"seed": 0, "instructions": name} for name in ("AVX2", "AVX512")]
    where = {"commit": "abc", "sources": "", "threads": [1]}
    long.write_text(json.dumps({"rows": old, "measured": {**where, "instructions": ["AVX2", "AVX512"]}}))

    def call(table, target, way, published):
        if target.exists():
            return provenance.OTHER_REPORT
        grown(target, rows=old[:1])
        target.write_text(
            target.read_text().replace('"sources"', '"threads": [1], "instructions": ["AVX2"], "sources"')
        )
        return 0

    monkeypatch.setattr(results, "call", call)
    results.go_on("table", results.ways_of("table"), None)
    report = json.loads(long.read_text())
    assert report["rows"] == old
    assert report["measured"]["kept"] == ["AVX512"]


def test_a_growing_table_that_stopped_is_shown_as_far_as_it_came(project, long, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(results, "pages", shown.extend)
    played(project, monkeypatch, code=1)
    with pytest.raises(SystemExit, match="table is not finished; the same command goes on with it"):
        main(monkeypatch, capsys, "table")
    assert shown == ["table"]


def test_a_growing_table_that_takes_no_hours_is_measured_with_every_set(project, long, monkeypatch, capsys):
    monkeypatch.setattr(provenance, "LONG", ())
    grown(long, unfinished=[{"seed": 1}])
    assert provenance.stale() == {"table": "it is not finished"}
    calls = played(project, monkeypatch)
    assert "the tables of hours are finished" in main(monkeypatch, capsys)
    assert [name for _, name in calls] == ["avx2", "avx512"]
    assert [command[-1] for command, _ in calls] == [str(long)] * 2


def test_a_release_needs_tables_that_are_true(monkeypatch, capsys):
    monkeypatch.setattr(provenance, "stale", lambda: {"table": "its sources changed since abc"})
    release_check.check_tables(release=False)
    assert "1 stale, `make results`" in (said := capsys.readouterr().out)
    assert "table: its sources changed since abc" in said
    with pytest.raises(SystemExit, match="a release needs tables that are true"):
        release_check.check_tables(release=True)
    monkeypatch.setattr(provenance, "stale", dict)
    release_check.check_tables(release=True)
    # what takes hours may be unfinished, but is named
    monkeypatch.setattr(provenance, "unfinished", lambda: {"long": "2 rows are missing"})
    capsys.readouterr()
    release_check.check_tables(release=True)
    assert "long: 2 rows are missing, as its page says" in capsys.readouterr().out


def test_the_commands_of_the_tables_exist():
    for table in provenance.SOURCES:
        assert (ROOT / results.command(table, Path("x"), None)[0]).is_file()
    sine = results.command("experiments/sine", Path("x"), Path("clone"))
    assert sine[-2:] == ["--published", "clone"]
    assert results.command("experiments/smnist", Path("x"), Path("clone"))[-2:] == sine[-2:]
    assert "--published" not in results.command("experiments/digits", Path("x"), Path("clone"))
