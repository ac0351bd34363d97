"""The wheel: exactly three packages, typed, complete, and usable outside the tree."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"fl_plugins", "strategies", "clients"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_has_exactly_three_top_level_packages_each_typed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_wheel_holds_every_module_of_the_tree(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_wheel_runs_from_an_empty_folder_and_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    # The new environment sees this one's third-party packages through a .pth file but not this source tree:
    # installing JAX and Flower again would take minutes and show nothing about our wheel.
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    site = next(environment.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    here = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    visible = tmp_path / "third-party"
    visible.mkdir()
    for entry in here.iterdir():
        if not entry.name.startswith(("fl_plugins", "_fl_plugins", "__editable__")):
            (visible / entry.name).symlink_to(entry)
    (site / "third_party.pth").write_text(f"{visible}\n")
    script = (
        "import fl_plugins, strategies, clients, sys\n"
        "from fl_plugins.registry import Kind, available, load\n"
        "assert strategies.__file__.startswith(sys.prefix), strategies.__file__\n"
        "for entry in available():\n"
        "    if entry.owner == 'fl-plugins':\n"
        "        load(entry.kind, f'{entry.owner}:{entry.name}')\n"
        "print(strategies.Krum(num_byzantine=2).describe())\n"
    )
    python = environment / "bin" / "python"
    done = subprocess.run([python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "num_byzantine=2" in done.stdout


def test_the_core_imports_and_lists_without_any_extra() -> None:
    script = (
        "import sys\n"
        "for extra in ('ray', 'flwr_datasets', 'datasets', 'hypothesis', 'pytest', 'build'):\n"
        "    sys.modules[extra] = None\n"
        "import fl_plugins, strategies, clients\n"
        "import fl_plugins.apps.server_app, fl_plugins.apps.client_app, fl_plugins.testing\n"
        "from fl_plugins.cli import main\n"
        "sys.exit(main(['list', 'strategy']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "krum" in done.stdout
