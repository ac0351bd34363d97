"""``fl-plugins list``, ``show`` and ``doctor``."""

import argparse
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import fl_plugins.cli
from fl_plugins.cli import doctor, main
from fl_plugins.cli.doctor import Verdict
from fl_plugins.errors import ConfigError
from fl_plugins.registry import _entries

REPOSITORY = Path(__file__).resolve().parents[2]
CODEC = '''
    from typing import Annotated, Literal

    from fl_plugins.contracts import Access, Contract, Weighting
    from fl_plugins.registry import Kind, PluginKind, register

    @register(Kind.CODEC, "shrink", paper="Nobody 2020, Section 3",
              contract=Contract(access=Access.SUM, weighting=Weighting.EXAMPLES))
    def shrink(level: int, mode: Literal["fast", "small"] = "fast",
               *then: Annotated[object, PluginKind(Kind.CODEC)], ratio: float | None = None):
        """Make it smaller.

        Much smaller.

        Parameters
        ----------
        level : int
            How much.

        Guarantees
        ----------
        None.
        """
'''
POINTS = "[fl_plugins.codecs]\nshrink = {}:shrink\n"


def test_list_prints_aligned_lines_when_piped_and_survives_a_broken_plugin(install, capsys):
    install("acme", POINTS.format("acme_codec"), {"acme_codec.py": CODEC})
    install("broken", "[fl_plugins.codecs]\nbad = broken_codec:bad\n", {"broken_codec.py": "1 / 0"})
    assert main(["list", "codec"]) == 0
    header, bad, good = capsys.readouterr().out.splitlines()
    assert header.split() == ["KIND", "NAME", "OWNER", "SUMMARY"]
    assert bad.split()[:4] == ["codec", "bad", "broken", "BROKEN:"]
    assert "ZeroDivisionError" in bad
    assert good.split(maxsplit=3) == ["codec", "shrink", "acme", "Make it smaller."]
    assert good.index("Make") == bad.index("BROKEN") == header.index("SUMMARY")


def test_list_without_a_kind_has_every_kind_that_has_plugins(capsys):
    assert main(["list"]) == 0
    rows = {tuple(line.split()[:3]) for line in capsys.readouterr().out.splitlines()}
    expected = {
        ("strategy", "krum", "fl-plugins"),
        ("optimizer", "sgd", "fl-plugins"),
        ("stopper", "plateau", "fl-plugins"),
        ("attack", "sign_flip", "fl-plugins"),
    }
    assert expected <= rows


def test_list_shows_both_owners_of_a_name(install, capsys):
    install("acme", POINTS.format("acme_codec"), {"acme_codec.py": CODEC})
    install("other", POINTS.format("other_codec"), {"other_codec.py": CODEC})
    assert main(["list", "codec"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[2] for line in lines] == ["acme", "other"]
    assert all("Make it smaller." in line for line in lines)


def test_modules_can_be_named_like_in_a_run_config(install, capsys):
    install("acme", "", {"acme_codec.py": CODEC})
    assert main(["list", "codec", "--plugins", "acme_codec"]) == 0
    assert "acme_codec" in capsys.readouterr().out
    assert main(["show", "shrink", "--plugins", "acme_codec"]) == 0
    assert main(["list", "--plugins", "no_such_module"]) == 2
    assert "'no_such_module' cannot be imported" in capsys.readouterr().err


def test_show_prints_parameters_documentation_paper_and_contract(install, capsys):
    install("acme", POINTS.format("acme_codec"), {"acme_codec.py": CODEC})
    assert main(["show", "shrink"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "codec shrink (acme, acme_codec)",
        "  Make it smaller.",
        "",
        "  Much smaller.",
        "",
        "  Guarantees",
        "  ----------",
        "  None.",
        "  paper: Nobody 2020, Section 3",
        "  needs: only their sum",
        "  weights: examples",
        "  parameters:",
        "    level: int (required)",
        "        How much.",
        "    mode: one of 'fast', 'small' = 'fast'",
        "    *then: a plugin of kind 'codec'",
        "    ratio: float or None = None",
        "",
    ]


def test_show_shows_each_kind_and_kind_narrows_it(capsys):
    assert main(["show", "krum"]) == 0
    both = capsys.readouterr().out
    assert "strategy krum (fl-plugins" in both
    assert "aggregator krum (fl-plugins" in both
    assert main(["show", "fl-plugins:krum", "--kind", "aggregator"]) == 0
    one = capsys.readouterr().out
    assert "strategy krum" not in one
    assert "aggregator krum" in one


def test_show_says_the_defaults_of_options_that_all_strategies_share(capsys):
    assert main(["show", "krum", "--kind", "strategy"]) == 0
    page = capsys.readouterr().out
    assert "    num_byzantine: int (required)" in page
    assert "    quorum: float = 0.5" in page


def test_show_of_a_broken_plugin_shows_the_others_and_fails(install, capsys):
    install("acme", POINTS.format("acme_codec"), {"acme_codec.py": CODEC})
    install("broken", POINTS.format("broken_codec"), {"broken_codec.py": "1 / 0"})
    assert main(["show", "shrink"]) == 2
    captured = capsys.readouterr()
    assert "codec shrink (acme, acme_codec)" in captured.out
    assert "'shrink' of broken" in captured.err


@pytest.mark.parametrize("arguments", [["show", "krmu"], ["show", "krmu", "--kind", "strategy"]])
def test_an_unknown_name_is_one_line_on_stderr_and_exit_2(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fl-plugins: no ")
    assert captured.err.count("\n") == 1
    assert "did you mean krum" in captured.err


def test_show_suggests_nothing_for_a_name_that_is_like_none(capsys):
    assert main(["show", "zzzz"]) == 2
    captured = capsys.readouterr()
    assert "did you mean" not in captured.err
    assert "krum" in captured.err, "all names are listed"


def test_a_wrong_command_line_is_exit_2(capsys):
    for arguments in ([], ["lst"], ["list", "strategies"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "usage: fl-plugins" in capsys.readouterr().err


def command(run):
    def add_parser(subparsers):
        subparsers.add_parser("go").set_defaults(run=run)

    return argparse.Namespace(add_parser=add_parser)


@pytest.mark.parametrize(
    ("outcome", "status"), [(0, 0), (1, 1), (ConfigError("x: y=1,\nbut"), 2), (KeyboardInterrupt(), 130)]
)
def test_the_exit_status_says_how_it_ended(monkeypatch, capsys, outcome, status):
    def run(_):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(fl_plugins.cli, "import_module", lambda _: command(run))
    monkeypatch.setattr(fl_plugins.cli, "_COMMANDS", ("go",))
    assert main(["go"]) == status
    assert capsys.readouterr().err == ("fl-plugins: x: y=1, but\n" if status == 2 else "")


def test_an_error_that_is_not_ours_keeps_its_traceback(monkeypatch):
    def run(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(fl_plugins.cli, "import_module", lambda _: command(run))
    monkeypatch.setattr(fl_plugins.cli, "_COMMANDS", ("go",))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["go"])


def test_a_reader_that_stops_reading_is_no_error():
    code = "import sys; from fl_plugins.cli import main; sys.exit(main(['list', 'stopper']))"
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_imports_nothing_heavy(python, tmp_path):
    code = """
        import sys
        from fl_plugins.cli import main
        try:
            main(["--help"])
        except SystemExit:
            print("heavy:", {"jax", "flwr", "ray", "optax", "rich.table"} & set(sys.modules))
    """
    done = python(code, cwd=tmp_path, path=(REPOSITORY,))
    assert "heavy: set()" in done.stdout, done.stderr
    for name in ("list", "show", "doctor", "simulate", "compare"):
        assert name in done.stdout


def test_a_table_on_a_terminal_wraps_only_the_last_column(monkeypatch, capsys):
    from fl_plugins.cli._text import print_table

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("NAME", "SUMMARY"), [("multi_krum", "[bold]many words that do not fit on one line")])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[1].startswith("multi_krum")
    assert "[bold]many" in lines[1]
    assert len(lines) > 2
    assert max(map(len, lines)) <= 40


# -- doctor ----------------------------------------------------------------------------------------------


def verdicts(check):
    return {finding.subject: finding for finding in doctor._examine(check)}


def test_doctor_is_content_with_versions_that_the_metadata_allows():
    found = verdicts(doctor.check_versions)
    assert {"python", "flwr", "jax", "flax", "optax", "numpy"} <= set(found)
    assert all(finding.verdict is not Verdict.WRONG for finding in found.values())
    assert found["flwr"].detail.startswith("1.41")
    assert ">=1.41" in found["flwr"].detail


@pytest.mark.parametrize("version", ["1.40.9", "1.42.0", "2.0"])
def test_doctor_refuses_a_version_outside_the_range_and_says_what_to_install(monkeypatch, version):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: version if name == "flwr" else real(name))
    finding = verdicts(doctor.check_versions)["flwr"]
    assert finding.verdict is Verdict.WRONG
    assert version in finding.detail
    assert "pip install 'flwr" in finding.remedy


def test_doctor_tells_a_missing_requirement_from_a_missing_extra(monkeypatch):
    def missing(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    found = verdicts(doctor.check_versions)
    assert (found["jax"].verdict, found["jax"].detail) == (Verdict.WRONG, "not installed")
    assert found["ray"].verdict is Verdict.NOTE


def test_doctor_reads_the_ranges_of_an_installed_copy_from_its_metadata(monkeypatch):
    monkeypatch.setattr(doctor, "own_project", lambda: None)
    monkeypatch.setattr(doctor, "metadata", lambda _: {"Requires-Python": ">=3.99"})
    monkeypatch.setattr(doctor, "requires", lambda _: ["jax<0.1", "ray<1; extra == 'simulation'"])
    found = verdicts(doctor.check_versions)
    assert found["python"].verdict is Verdict.WRONG
    assert found["jax"].verdict is Verdict.WRONG
    assert found["ray"].verdict is not Verdict.WRONG


def test_doctor_names_the_devices():
    assert verdicts(doctor.check_devices)["jax devices"].detail.startswith(("1 x cpu", "1 x gpu"))


def test_doctor_notices_a_flwr_without_what_the_door_needs(monkeypatch):
    assert verdicts(doctor.check_flower)["flwr internals"].verdict is Verdict.OK
    monkeypatch.setitem(sys.modules, "fl_plugins._flower", None)
    monkeypatch.delattr("fl_plugins._flower", raising=False)
    (finding,) = doctor._examine(doctor.check_flower)
    assert finding.verdict is Verdict.WRONG
    assert finding.subject == "flower"
    assert "_flower" in finding.detail


@pytest.mark.parametrize("package", ["fl_plugins", "strategies", "clients"])
def test_doctor_sees_a_folder_in_the_current_one_that_hides_ours(tmp_path, monkeypatch, package):
    monkeypatch.chdir(tmp_path)
    assert verdicts(doctor.check_shadowing)["shadowing"].verdict is Verdict.OK
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    finding = verdicts(doctor.check_shadowing)["shadowing"]
    assert finding.verdict is Verdict.WRONG
    assert str(tmp_path / package / "__init__.py") in finding.detail
    assert str(REPOSITORY / package / "__init__.py") in finding.detail


@pytest.mark.parametrize(
    ("body", "is_stale"),
    [
        ("1 / 0", False),
        ("x = 1", True),
        (None, True),
        ("import missing_lib", False),
        ("import sys; sys.no_such_thing", False),
    ],
)
def test_doctor_tells_stale_entry_points_from_broken_plugins(install, body, is_stale):
    files = {"acme_pkg/__init__.py": ""} | ({"acme_pkg/codec.py": body} if body else {})
    install("acme", POINTS.format("acme_pkg.codec"), files)
    finding = verdicts(doctor.check_plugins)["codec shrink"]
    assert finding.verdict is Verdict.WRONG
    assert ("older" in finding.remedy) == is_stale


def test_doctor_reports_metadata_that_nobody_reads(install):
    install("typo", "[fl_plugins.strategy]\nx = y:z\n")
    finding = verdicts(doctor.check_plugins)["metadata"]
    assert finding.verdict is Verdict.WRONG
    assert "'fl_plugins.strategy'" in finding.detail


def test_doctor_notes_two_owners_and_metadata_of_ours_that_is_stale(install, monkeypatch):
    install("acme", POINTS.format("acme_codec"), {"acme_codec.py": CODEC})
    install("other", POINTS.format("other_codec"), {"other_codec.py": CODEC})
    install("fl-plugins", "[fl_plugins.tasks]\nforgotten = clients:gone\n")
    _entries._scan.cache_clear()
    found = verdicts(doctor.check_plugins)
    assert found["codec shrink"].verdict is Verdict.NOTE
    assert "acme and other" in found["codec shrink"].detail
    assert found["metadata"].verdict is Verdict.NOTE
    assert "pip install -e ." in found["metadata"].remedy


def test_doctor_sees_whether_something_answers_at_flowers_port(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(port))
        assert verdicts(doctor.check_port)[f"port {port}"].verdict is Verdict.NOTE
    assert verdicts(doctor.check_port)[f"port {port}"].verdict is Verdict.OK


def test_doctor_exits_1_only_if_something_is_wrong(monkeypatch, capsys):
    def check(verdict):
        return lambda: iter([doctor.Finding(verdict, "thing", "detail", "remedy")])

    monkeypatch.setattr(doctor, "CHECKS", (check(Verdict.OK), check(Verdict.NOTE)))
    assert main(["doctor"]) == 0
    assert "All 2 checks passed." in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CHECKS", (check(Verdict.OK), check(Verdict.WRONG)))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 checks failed." in out
    assert "WRONG  thing  detail; remedy" in out


def test_doctor_has_every_check():
    checks = {value for name, value in vars(doctor).items() if name.startswith("check_")}
    assert set(doctor.CHECKS) == checks
