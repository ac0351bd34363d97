"""Identities and rosters of the malicious tier, by function and by command line."""

import stat
from pathlib import Path

import pytest

from fl_plugins.cli import main
from fl_plugins.errors import ConfigError
from fl_plugins.secure_identities import (
    PRIVATE_KEY,
    PUBLIC_KEY,
    make_identity,
    read_identity,
    read_roster,
    write_roster,
)


def test_the_command_line_makes_identities_and_a_roster_that_a_node_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert main(["secagg", "identity", str(tmp_path / name)]) == 0
    keys = [f"hospital-{name}={tmp_path / name / PUBLIC_KEY}" for name in ("a", "b")]
    assert main(["secagg", "roster", str(tmp_path / "roster.toml"), *keys]) == 0
    roster = read_roster(tmp_path / "roster.toml")
    assert sorted(roster) == ["hospital-a", "hospital-b"]
    private = tmp_path / "a" / PRIVATE_KEY
    assert read_identity(private).public == roster["hospital-a"]
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert private.read_text().splitlines()[1] not in capsys.readouterr().out


def test_a_roster_of_helpers_may_have_one_line_and_one_of_clients_two_at_least(tmp_path: Path) -> None:
    assert main(["secagg", "identity", str(tmp_path / "h")]) == 0
    file, key = tmp_path / "helpers.toml", f"h={tmp_path / 'h' / PUBLIC_KEY}"
    assert main(["secagg", "roster", str(file), key]) == 2
    assert main(["secagg", "roster", "--helpers", str(file), key]) == 0
    assert list(read_roster(file, at_least=1)) == ["h"]
    with pytest.raises(ConfigError, match="at least 2 lines"):
        read_roster(file)


def test_an_identity_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = make_identity(tmp_path)
    assert main(["secagg", "identity", str(tmp_path)]) == 2
    assert "rosters may name it" in capsys.readouterr().err
    assert read_identity(tmp_path / PRIVATE_KEY).public == before


KEY = "ab" * 32


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "one table"),
        ("[identities]", "at least 2 lines"),
        (f'[identities]\na = "{KEY}"', "at least 2 lines"),
        (f'[identities]\na = "{KEY}"\nb = "{KEY}"', "two nodes have one key"),
        (f'[identities]\na = "{KEY}"\nb = "{KEY[2:]}"', "64 hexadecimal digits"),
        (f'[identities]\na = "{KEY}"\nb = 7', "64 hexadecimal digits"),
        (f'[identities]\na = "{KEY}"\n"b c" = "{KEY}"', "letters, digits"),
        (f'[identities]\na = "{KEY}"\nb = "{"cd" * 32}"\n[more]', "one table"),
        ("[identities", "cannot be read"),
    ],
)
def test_a_roster_that_is_none_is_refused_whole(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_roster(path)


def test_files_that_are_no_keys_are_refused_without_showing_them(tmp_path: Path) -> None:
    secret = tmp_path / "secret.pem"
    secret.write_text("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigError) as error:
        read_identity(secret)
    assert "secret\n" not in str(error.value)
    with pytest.raises(ConfigError, match="at least 2, each"):
        write_roster(tmp_path / "r.toml", {"a": bytes(32)})
    assert main(["secagg", "roster", str(tmp_path / "r.toml"), "a", "b=c"]) == 2
    assert main(["secagg", "roster", str(tmp_path / "r.toml"), f"a={tmp_path / 'missing'}"]) == 2
    assert not (tmp_path / "r.toml").exists()
