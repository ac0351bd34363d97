"""What an operator copies to real machines, read by systemd, Compose, sh and Flower themselves."""

import importlib.metadata
import json
import os
import shutil
import stat
import subprocess
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from flwr.common.config import parse_config_args
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from fl_plugins.deployment import processes
from fl_plugins.deployment.create import create
from fl_plugins.deployment.layout import Layout, Role, Settings
from fl_plugins.secure_identities import PRIVATE_KEY, make_identity

INSTALLED = {"server": "fl-plugins-superlink", "node": "fl-plugins-supernode"}
"""Folders below ``/opt/fl-plugins``, as docs/deployment.md says, and their units."""

PARSERS: dict[str, Callable[[], ArgumentParser]] = {
    "flower-superlink": _parse_args_run_superlink,
    "fl-plugins-supernode": _parse_args_run_supernode,
}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return create(tmp_path / "a study", Settings(host="fl.example.org", num_nodes=2))


def roles(layout: Layout) -> dict[str, Role]:
    return {"server": layout.server, "node": layout.node(1)}


def machine(layout: Layout, root: Path) -> Path:
    """Lay a role's folder and unit out as on a machine that has both; return where the units are."""
    units = root / "etc" / "systemd" / "system"
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    units.mkdir(parents=True)
    for name, role in roles(layout).items():
        shutil.copytree(role.folder, root / "opt" / "fl-plugins" / name)
        shutil.copy(role.folder / f"{INSTALLED[name]}.service", units)
    return units


def systemd_says(root: Path) -> str:
    """Return all that ``systemd-analyze verify`` has to say; for unknown directives its status is 0."""
    units = [f"{name}.service" for name in INSTALLED.values()]
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", *units], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this system")
def test_systemd_has_nothing_to_say_against_the_units(layout: Layout, tmp_path: Path) -> None:
    units = machine(layout, tmp_path / "root")
    assert systemd_says(tmp_path / "root") == ""
    server = units / "fl-plugins-superlink.service"
    text = server.read_text()
    server.write_text(text.replace("NoNewPrivileges", "NoNewPrivilege"))
    assert "Unknown key" in systemd_says(tmp_path / "root")
    server.write_text(text.replace("start.sh", "begin.sh"))
    assert "begin.sh is not executable" in systemd_says(tmp_path / "root")


def compose_of(role: Role) -> dict[str, Any]:
    (service,) = read_compose(role)["services"].values()
    assert isinstance(service, dict)
    return service


def read_compose(role: Role) -> dict[str, Any]:
    text = (role.folder / "docker-compose.yml").read_text()
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def test_the_compose_files_are_what_the_compose_specification_allows(layout: Layout) -> None:
    """Against the specification's own schema, which check-jsonschema carries."""
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    for role in roles(layout).values():
        described = read_compose(role)
        jsonschema.validate(described, schema)
        (service,) = described["services"].values()
        service["read-only"] = service.pop("read_only")
        with pytest.raises(jsonschema.ValidationError, match="read-only"):
            jsonschema.validate(described, schema)


def unit_of(name: str, role: Role) -> dict[str, list[str]]:
    """Return the directives of a unit's ``[Service]``; one may be given more than once."""
    found: dict[str, list[str]] = {}
    for line in (role.folder / f"{INSTALLED[name]}.service").read_text().splitlines():
        key, given, value = line.partition("=")
        if given:
            found.setdefault(key, []).append(value)
    return found


def test_unit_container_and_deploy_up_run_the_same_script(layout: Layout, monkeypatch: Any) -> None:
    """So that what the end-to-end tests run is what an operator runs."""
    started: list[tuple[str, list[str]]] = []

    def spawn(path: Path, arguments: list[str], *_: Any, **__: Any) -> int:
        started.append((str(path), arguments))
        return os.getpid()

    monkeypatch.setattr(processes, "is_running", lambda _: False)
    monkeypatch.setattr(processes, "end", lambda _: False)
    monkeypatch.setattr(os, "posix_spawn", spawn)
    for name, role in roles(layout).items():
        processes.start(role)
        script = str(role.folder / "start.sh")
        assert started[-1] == (script, [script])
        assert unit_of(name, role)["ExecStart"] == [f"/opt/fl-plugins/{name}/start.sh"]
        container = compose_of(role)
        assert container["command"] == ["/deployment/start.sh"]
        assert "entrypoint" not in container
        assert container["volumes"] == ["./:/deployment:ro", "./state:/deployment/state"]
        assert stat.S_IMODE(role.start_script.stat().st_mode) & 0o111


def test_a_service_writes_in_its_state_only_and_comes_back_by_itself(layout: Layout) -> None:
    for name, role in roles(layout).items():
        service = unit_of(name, role)
        state = f"/opt/fl-plugins/{name}/state"
        assert (service["ProtectSystem"], service["ReadWritePaths"]) == (["strict"], [state])
        assert service["Environment"] == [
            "PATH=/opt/fl-plugins/venv/bin:/usr/bin:/bin",
            f"XDG_CACHE_HOME={state}/cache",
        ]
        assert service["User"] == ["flower"]
        assert service["Restart"] == ["always"]


def what_is_run(role: Role, folder: Path, **environment: str) -> tuple[str, list[str], dict[str, str]]:
    """Return the command, arguments and environment that a start script ends in; stand-ins note them."""
    folder.mkdir(exist_ok=True)
    told = folder / "told"
    for name in PARSERS:
        (folder / name).write_text(f'#!/bin/sh\nprintf \'%s\\0\' "$@" > "{told}"\nenv -0 > "{told}.env"\n')
        (folder / name).chmod(0o755)
    (command,) = [
        line.split()[1] for line in role.start_script.read_text().splitlines() if line.startswith("exec ")
    ]
    done = subprocess.run(
        [role.start_script, "--max-retries=0"] if command != "flower-superlink" else [role.start_script],
        env={"PATH": f"{folder}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    arguments = told.read_text().split("\0")[:-1]
    pairs = (line.split("=", 1) for line in (folder / "told.env").read_text().split("\0") if line)
    return command, arguments, dict(pair for pair in pairs if len(pair) == 2)


def parsed(command: str, arguments: list[str]) -> Namespace:
    """Let the parser of the installed Flower read them; it ends the process over what it does not know."""
    return PARSERS[command]().parse_args(arguments)


def test_flower_takes_every_argument_that_the_superlink_is_started_with(
    layout: Layout, tmp_path: Path
) -> None:
    command, arguments, environment = what_is_run(layout.server, tmp_path / "bin")
    read = parsed(command, arguments)
    assert command == "flower-superlink"
    assert (read.host, read.port, read.isolation) == ("0.0.0.0", 9092, "subprocess")
    assert read.enable_supernode_auth
    assert not read.insecure
    for path in (read.ssl_certfile, read.ssl_keyfile, read.ssl_ca_certfile):
        assert Path(path).is_file()
    assert Path(read.database).parent == layout.server.state
    assert environment["FLWR_HOME"] == str(layout.server.state / "flwr")
    with pytest.raises(SystemExit):  # the control
        parsed(command, [*arguments, "--no-such-option"])


@pytest.mark.parametrize("more", [False, True])
def test_flower_takes_every_argument_that_a_supernode_is_started_with(
    more: bool, layout: Layout, tmp_path: Path
) -> None:
    """Also with all that an operator may put there: policy, identity, roster, more of its own config."""
    node = layout.node(1)
    wanted = {"partition-id": 1, "num-partitions": 2}
    if more:
        settings = node.folder / "settings.env"
        settings.write_text(
            settings.read_text().replace("#POLICY=", "POLICY=").replace("#NODE_CONFIG=", "NODE_CONFIG=")
        )
        make_identity(node.folder)
        (node.folder / "secagg_roster.toml").touch()
        wanted |= {
            "policy": str(node.folder / "policy.toml"),
            "secagg-identity": str(node.folder / PRIVATE_KEY),
            "secagg-roster": str(node.folder / "secagg_roster.toml"),
            "secagg-min-clients": 5,
        }
    (node.folder / "data").mkdir()
    command, arguments, environment = what_is_run(node, tmp_path / "bin")
    read = parsed(command, arguments)
    scripts = importlib.metadata.entry_points(group="console_scripts")
    assert scripts[command].value == "fl_plugins.resident.supernode:main"
    assert (read.superlink, read.host, read.port) == ("fl.example.org:9092", "127.0.0.1", 9095)
    assert (read.isolation, read.insecure, read.max_retries) == ("subprocess", False, 0)
    for path in (read.root_certificates, read.auth_supernode_private_key):
        assert Path(path).is_file()
    assert parse_config_args([read.node_config]) == wanted
    assert environment.get("FL_PLUGINS_POLICY") == wanted.get("policy")
    assert environment["FL_PLUGINS_DATA"] == str(node.folder / "data")
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
