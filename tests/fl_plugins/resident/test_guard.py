"""Only app bundles that the node's operator has listed are unpacked and started."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_plugins._flower import BUNDLE_CHECKED, start_checked_bundles_only
from fl_plugins.apps.layers import _check_that_bundles_are_checked
from fl_plugins.errors import ConfigError, PolicyError
from fl_plugins.resident import guard, supernode

LISTED, OTHER = b"a listed bundle", b"another bundle"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    """Flower's runner as far as bundles go: it installs by content, and finds by what the message says."""
    installed: list[bytes] = []

    def install_from_fab(content: bytes, *, skip_prompt: bool) -> Path:
        assert skip_prompt
        installed.append(content)
        return tmp_path / f"us.app.1.0.{digest(content)[:8]}"

    def get_project_dir(fab_id: str, fab_version: str, fab_hash: str) -> Path:
        return tmp_path / f"{fab_id.replace('/', '.')}.{fab_version}.{fab_hash[:8]}"

    runner = SimpleNamespace(
        install_from_fab=install_from_fab, get_project_dir=get_project_dir, installed=installed
    )
    start_checked_bundles_only(runner, lambda content: guard.check_bundle(content, [digest(LISTED)]))
    return runner


def test_a_listed_bundle_starts(runner: Any) -> None:
    folder = runner.install_from_fab(LISTED, skip_prompt=True)
    assert runner.get_project_dir("us/app", "1.0", digest(LISTED)) == folder


def test_an_unlisted_bundle_is_not_even_unpacked(runner: Any) -> None:
    with pytest.raises(PolicyError, match=f"{digest(OTHER)} is not among this node's fab_hashes"):
        runner.install_from_fab(OTHER, skip_prompt=True)
    assert runner.installed == []


@pytest.mark.parametrize(
    ("fab_id", "version", "content"),
    [("us/app", "1.0", OTHER), ("us/app", "0.9", LISTED), ("them/app", "1.0", LISTED),
     ("us/app", "1.0.x/../../elsewhere", LISTED)],
)  # fmt: skip
def test_a_listed_bundle_does_not_open_the_door_to_one_that_was_unpacked_before(
    runner: Any, fab_id: str, version: str, content: bytes
) -> None:
    runner.install_from_fab(LISTED, skip_prompt=True)
    with pytest.raises(PolicyError, match="nothing was started"):
        runner.get_project_dir(fab_id, version, digest(content))


def test_nothing_is_found_before_a_bundle_was_checked(runner: Any) -> None:
    with pytest.raises(PolicyError, match="nothing was started"):
        runner.get_project_dir("us/app", "1.0", digest(LISTED))


def policy_file(tmp_path: Path, *hashes: str) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(f"fab_hashes = {list(hashes)}\n" if hashes else "min_cohort = 2\n")
    return str(path)


def test_a_policy_with_bundles_is_served_only_where_these_are_enforced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demanded = [digest(LISTED)]
    monkeypatch.setenv(guard.POLICY_VARIABLE, policy_file(tmp_path, *demanded))
    for pid in ("", str(os.getpid() + 1)):  # a parent's mark is not this process's
        monkeypatch.setenv(BUNDLE_CHECKED, pid)
        with pytest.raises(PolicyError, match="only enforced"):
            _check_that_bundles_are_checked(demanded)
    monkeypatch.setenv(BUNDLE_CHECKED, str(os.getpid()))
    _check_that_bundles_are_checked(demanded)
    monkeypatch.setenv(guard.POLICY_VARIABLE, policy_file(tmp_path, *demanded, digest(OTHER)))
    with pytest.raises(PolicyError, match="this very policy"):
        _check_that_bundles_are_checked(demanded)


@pytest.mark.parametrize("listed", [True, False])
def test_a_process_without_a_list_does_not_say_that_it_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    served = []
    main = "flwr.supernode.cli.flwr_clientapp"
    monkeypatch.setattr(main, lambda: served.append(os.environ.get(BUNDLE_CHECKED)))
    from flwr.supernode.runtime import run_clientapp

    for name in ("install_from_fab", "get_project_dir"):  # both are put back afterwards
        monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))
    monkeypatch.setattr("sys.argv", ["x"])
    monkeypatch.setenv(BUNDLE_CHECKED, str(os.getpid()))
    path = policy_file(tmp_path, *([digest(LISTED)] if listed else []))
    monkeypatch.setenv(guard.POLICY_VARIABLE, path)
    guard.main()
    assert served == [str(os.getpid()) if listed else None]


def test_a_policy_that_cannot_be_read_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(guard.POLICY_VARIABLE, "/nowhere/policy.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        guard.main()


def test_a_system_on_which_bundles_are_not_checked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(guard.POLICY_VARIABLE, policy_file(tmp_path, digest(LISTED)))
    monkeypatch.setattr(supernode.sys, "platform", "darwin")
    monkeypatch.setattr(supernode, "run_supernode", lambda: pytest.fail("it was started"))
    with pytest.raises(ConfigError, match="fab_hashes, which are not enforced on darwin"):
        supernode.main()
