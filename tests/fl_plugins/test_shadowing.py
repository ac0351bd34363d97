"""Where a package comes from: a folder that hides an installed one is named, and not imported."""

import shutil
import sys

import pytest

from fl_plugins.errors import ShadowedPackageError
from fl_plugins.registry import Kind, find_shadows, load

from .fake_plugins import ONE_CODEC, REPOSITORY, RULE

LOAD = """
    import sys
    from fl_plugins.registry import Kind, load
    try:
        print(sys.modules[load(Kind("{}"), "{}").module].__file__)
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("files", [{"__init__.py": ""}, {"__init__.py": "", "sign_flip.py": "x = 1"}])
@pytest.mark.parametrize("package", ["strategies", "clients"])
def test_a_users_own_folder_that_hides_ours_is_named_beside_ours(tmp_path, python, package, files):
    folder = tmp_path / package
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    name = {"strategies": ("strategy", "krum"), "clients": ("attack", "sign_flip")}[package]
    done = python(LOAD.format(*name), cwd=tmp_path, path=(REPOSITORY,))
    assert "ShadowedPackageError" in done.stdout, done
    assert str(folder / "__init__.py") in done.stdout
    assert str(REPOSITORY / package / "__init__.py") in done.stdout


def test_the_shadowing_package_is_not_imported_by_the_check(tmp_path, python):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "__init__.py").write_text("print('I ran')")
    done = python(LOAD.format("strategy", "krum"), cwd=tmp_path, path=(REPOSITORY,))
    assert "ShadowedPackageError" in done.stdout
    assert "I ran" not in done.stdout


def test_a_folder_that_is_no_package_hides_nothing(tmp_path, python):
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "notes.txt").write_text("")
    done = python(LOAD.format("attack", "sign_flip"), cwd=tmp_path, path=(REPOSITORY,))
    assert done.stdout.strip() == str(REPOSITORY / "clients" / "attacks" / "sign_flip.py"), done


def test_our_own_app_inside_a_fab_is_us(tmp_path, python):
    for package in ("fl_plugins", "strategies", "clients"):
        shutil.copytree(
            REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    done = python(LOAD.format("attack", "sign_flip"), cwd=tmp_path, path=(REPOSITORY,))
    assert done.stdout.strip() == str(tmp_path / "clients" / "attacks" / "sign_flip.py"), done


def test_an_uninstalled_copy_knows_its_plugins_from_its_own_pyproject(tmp_path, python):
    copy = tmp_path / "copy"
    shutil.copytree(
        REPOSITORY / "fl_plugins", copy / "fl_plugins", ignore=shutil.ignore_patterns("__pycache__")
    )
    (copy / "pyproject.toml").write_text(
        "[project]\nname = 'fl-plugins'\n[project.entry-points.'fl_plugins.stoppers']\n"
        "only_here = 'fl_plugins.stopping:Target'\n"
    )
    code = "from fl_plugins.registry import *; print([e.name for e in available(Kind.STOPPER)])"
    assert python(code, cwd=copy).stdout.strip() == "['only_here']"


def shadowed(install, tmp_path, monkeypatch, **options):
    """Install acme, hide it behind a folder that comes first, and load it."""
    install("acme", ONE_CODEC.format("acme_pkg.codec"), **options)
    first = tmp_path / "first"
    (first / "acme_pkg").mkdir(parents=True, exist_ok=True)
    (first / "acme_pkg" / "__init__.py").write_text("")
    (first / "acme_pkg" / "codec.py").write_text("def shrink(): return 'the stranger'")
    monkeypatch.syspath_prepend(str(first))
    return load(Kind.CODEC, "shrink")


PACKAGE = {"acme_pkg/__init__.py": "", "acme_pkg/codec.py": RULE}


def test_a_recorded_third_party_package_that_is_hidden_is_an_error(install, tmp_path, monkeypatch):
    with pytest.raises(ShadowedPackageError) as caught:
        shadowed(install, tmp_path, monkeypatch, files=PACKAGE)
    for folder in ("first", "site"):
        assert str(tmp_path / folder / "acme_pkg" / "__init__.py") in str(caught.value)


@pytest.mark.parametrize("layout", ["", "src/"])
@pytest.mark.parametrize("means", ["direct_url.json", "pth"])
def test_an_editable_third_party_package_that_is_hidden_is_an_error(
    install, tmp_path, monkeypatch, means, layout
):
    source = tmp_path / "project"
    for name, text in PACKAGE.items():
        path = source / layout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    extra = {
        "direct_url.json": f'{{"url": "file://{source}", "dir_info": {{"editable": true}}}}',
        "pth": "",
    }
    if means == "pth":
        extra = {"acme.pth": f"import os\n{source / layout}\n"}
    with pytest.raises(ShadowedPackageError, match="acme_pkg"):
        shadowed(install, tmp_path, monkeypatch, extra=extra)


def test_another_copy_of_the_same_project_is_no_shadow(install, tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "pyproject.toml").write_text("[project]\nname = 'Acme'\n")
    assert shadowed(install, tmp_path, monkeypatch, files=PACKAGE).factory() == "the stranger"


def test_a_copy_of_another_project_is_a_shadow(install, tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "pyproject.toml").write_text("[project]\nname = 'my-app'\n")
    with pytest.raises(ShadowedPackageError):
        shadowed(install, tmp_path, monkeypatch, files=PACKAGE)


def test_a_package_of_unknown_origin_is_no_error(install, tmp_path, monkeypatch):
    assert shadowed(install, tmp_path, monkeypatch, record=False).factory() == "the stranger"


def test_a_distribution_that_announces_another_ones_package_is_no_error(install, tmp_path):
    install("impl", "", PACKAGE)
    source = tmp_path / "meta"
    source.mkdir()
    direct = f'{{"url": "file://{source}", "dir_info": {{"editable": true}}}}'
    install("meta", ONE_CODEC.format("acme_pkg.codec"), extra={"direct_url.json": direct})
    assert load(Kind.CODEC, "shrink").owner == "meta"


def test_a_namespace_package_shared_by_two_distributions_is_no_error(install, tmp_path, monkeypatch):
    other = tmp_path / "other"
    (other / "shared_ns").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(other))
    install("acme", ONE_CODEC.format("shared_ns.codec"), {"shared_ns/codec.py": RULE})
    assert load(Kind.CODEC, "shrink").owner == "acme"


def test_a_single_module_that_is_hidden_is_an_error(install, tmp_path, monkeypatch):
    install("acme", ONE_CODEC.format("acme_single"), {"acme_single.py": RULE})
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "acme_single.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    with pytest.raises(ShadowedPackageError, match=r"first/acme_single\.py"):
        load(Kind.CODEC, "shrink")


def test_shadows_are_found_along_another_path_than_this_process_has(install, tmp_path):
    install("acme", ONE_CODEC.format("acme_pkg.codec"), PACKAGE)
    assert [shadow for shadow in find_shadows(sys.path) if shadow.package == "acme_pkg"] == []
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "acme_pkg").mkdir(parents=True)
    (elsewhere / "acme_pkg" / "__init__.py").write_text("")
    shadows = [s for s in find_shadows([str(elsewhere), *sys.path]) if s.package == "acme_pkg"]
    assert [shadow.imported for shadow in shadows] == [elsewhere / "acme_pkg" / "__init__.py"]
