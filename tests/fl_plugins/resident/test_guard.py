"""A node starts only the app bundles that its operator lists, and says so where it cannot see to it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl_plugins.errors import ConfigError, PolicyError
from fl_plugins.resident import guard, supernode

BUNDLE = b"an app"
HASH = hashlib.sha256(BUNDLE).hexdigest()

PROCESS = """
import sys
from flwr.supernode.runtime import run_clientapp
from flwr.supernode.cli import flwr_clientapp as command

installed = []
run_clientapp.install_from_fab = lambda content, skip_prompt: installed.append(content)

def as_flower_does(**_):
    run_clientapp.install_from_fab(b"an app", skip_prompt=True)

import flwr.supernode.cli.flwr_clientapp
sys.modules["flwr.supernode.cli.flwr_clientapp"].run_clientapp = as_flower_does
sys.argv = ["fl-plugins-clientapp", "--runtime-api-address", "127.0.0.1:1", "--token", "t", "--insecure"]

from fl_plugins.resident import guard
try:
    guard.main()
except Exception as error:
    print(type(error).__name__, error)
print(installed, sys.argv[0])
"""


def run_process(policy: Path | None) -> str:
    environment = {**os.environ}
    environment.pop(guard.POLICY_VARIABLE, None)
    if policy is not None:
        environment[guard.POLICY_VARIABLE] = str(policy)
    done = subprocess.run(
        [sys.executable, "-c", PROCESS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("hashes", "starts"), [(None, True), ("", True), (f'"{HASH}"', True), (f'"{"0" * 64}"', False)]
)
def test_a_bundle_that_is_not_listed_is_neither_unpacked_nor_imported(
    tmp_path: Path, hashes: str | None, starts: bool
) -> None:
    policy = None
    if hashes is not None:
        policy = tmp_path / "policy.toml"
        policy.write_text(f"fab_hashes = [{hashes}]" if hashes else "min_cohort = 1")
    told = run_process(policy)
    assert told.endswith("flwr-clientapp\n")
    if starts:
        assert told.startswith("[b'an app']")
    else:
        assert f"PolicyError policy: app bundle {HASH} is not among this node's fab_hashes" in told
        assert "\n[] flwr-clientapp" in told


def test_a_policy_that_cannot_be_read_starts_nothing(tmp_path: Path) -> None:
    told = run_process(tmp_path / "missing.toml")
    assert told.startswith("ConfigError")
    assert told.endswith("[] fl-plugins-clientapp\n")


def test_the_check_compares_whole_hashes() -> None:
    guard.check_bundle(BUNDLE, (HASH,))
    guard.check_bundle(BUNDLE, ())
    with pytest.raises(PolicyError):
        guard.check_bundle(BUNDLE, (HASH[:8],))
    with pytest.raises(PolicyError):
        guard.check_bundle(BUNDLE + b"!", (HASH,))


def test_a_system_on_which_bundles_are_not_checked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'fab_hashes = ["{HASH}"]')
    monkeypatch.setenv(guard.POLICY_VARIABLE, str(policy))
    monkeypatch.setattr(supernode.sys, "platform", "darwin")
    monkeypatch.setattr(supernode, "run_supernode", lambda: pytest.fail("it was started"))
    with pytest.raises(ConfigError, match="fab_hashes, which are not enforced on darwin"):
        supernode.main()
