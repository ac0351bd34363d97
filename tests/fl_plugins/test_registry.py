"""The registry, against fake distributions that are really on ``sys.path``."""

import importlib
import shutil
import sys
import tomllib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack, get_args

import pytest

from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.errors import (
    ConfigError,
    ConfigTypeError,
    DuplicatePluginError,
    PluginLoadError,
    ShadowedPackageError,
    UnknownPluginError,
)
from fl_plugins.registry import (
    Kind,
    Plugin,
    PluginKind,
    available,
    explains,
    find_shadows,
    load,
    load_modules,
    metadata_problems,
    own_project,
    register,
)
from fl_plugins.registry._registrations import registered

if TYPE_CHECKING:
    import optax

REPOSITORY = Path(__file__).resolve().parents[2]
NO_CACHE = shutil.ignore_patterns("__pycache__")
RULE = """
    from fl_plugins.registry import Kind, register

    @register(Kind.CODEC, "shrink", paper="Nobody 2020")
    def shrink(level: int = 1):
        '''Make it smaller.'''
        return ("shrink", level)
"""
ONE_CODEC = "[fl_plugins.codecs]\nshrink = {}:shrink\n"


def names(kind: Kind) -> list[tuple[str, str]]:
    return [(entry.owner, entry.name) for entry in available(kind)]


def test_an_entry_point_is_listed_without_being_imported_and_loaded_when_asked_for(install):
    install("acme", ONE_CODEC.format("acme_codec"), {"acme_codec.py": RULE})
    assert ("acme", "shrink") in names(Kind.CODEC)
    assert "acme_codec" not in sys.modules
    plugin = load(Kind.CODEC, "shrink")
    assert (plugin.owner, plugin.module, plugin.paper) == ("acme", "acme_codec", "Nobody 2020")
    assert plugin.summary == "Make it smaller."
    assert plugin.factory(level=3) == ("shrink", 3)


def test_a_plugin_without_the_decorator_works_and_has_no_metadata(install):
    install(
        "acme",
        "[fl_plugins.codecs]\nplain = acme_plain:Box.make\n",
        {
            "acme_plain.py": """
        class Box:
            @staticmethod
            def make(level: int = 2): return level
    """
        },
    )
    plugin = load(Kind.CODEC, "plain")
    assert plugin.factory() == 2
    assert (plugin.paper, plugin.contract) == ("", None)


@pytest.mark.parametrize("spelling", ["top_k", "top-k", "acme-x:top_k", "Acme_X:top-k", " acme.x:top_k "])
def test_hyphens_underscores_and_the_owner_all_name_the_same_plugin(install, spelling):
    install("acme-x", "[fl_plugins.codecs]\ntop-k = acme_topk:shrink\n", {"acme_topk.py": RULE})
    assert load(Kind.CODEC, spelling).name == "top_k"


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("import does_not_exist_anywhere", "does_not_exist_anywhere"),
        ("raise RuntimeError('the licence server is down')", "RuntimeError: the licence server is down"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("", "AttributeError"),
        ("shrink = 3", "cannot be called"),
    ],
)
def test_a_broken_plugin_fails_alone_and_only_when_asked_for(install, body, cause):
    install("acme", ONE_CODEC.format("acme_bad"), {"acme_bad.py": body})
    install(
        "good",
        "[fl_plugins.codecs]\nfine = good_codec:shrink\n",
        {"good_codec.py": RULE.replace('"shrink"', '"fine"')},
    )
    assert {("acme", "shrink"), ("good", "fine")} <= set(names(Kind.CODEC))
    assert load(Kind.CODEC, "fine").owner == "good"
    with pytest.raises(PluginLoadError, match="(?s)'shrink' of acme.*" + cause) as caught:
        load(Kind.CODEC, "shrink")
    assert isinstance(caught.value, ImportError)


def test_what_a_module_registered_before_its_import_failed_is_forgotten(install):
    install("acme", ONE_CODEC.format("acme_half"), {"acme_half.py": RULE + "\n    1 / 0\n"})
    for _ in range(2):
        with pytest.raises(PluginLoadError, match="ZeroDivisionError"):
            load(Kind.CODEC, "shrink")
    assert registered(Kind.CODEC, "shrink") == ()


@pytest.mark.parametrize("target", ["acme_codec", "acme_codec:", "not a module:shrink", ":shrink", "a..b:c"])
def test_a_malformed_target_is_an_error_of_that_plugin(install, target):
    install("acme", f"[fl_plugins.codecs]\nshrink = {target}\n", {"acme_codec.py": RULE})
    with pytest.raises(PluginLoadError, match=r"'shrink' of acme.*not module:object"):
        load(Kind.CODEC, "shrink")


def test_metadata_that_cannot_be_read_hides_no_other_plugin_and_is_reported(install):
    install("garbled", "[fl_plugins.codecs]\nthis is no entry point\n")
    install("typo", "[fl_plugins.strategy]\nx = y:z\n")
    install("acme", ONE_CODEC.format("acme_codec"), {"acme_codec.py": RULE})
    assert load(Kind.CODEC, "shrink").owner == "acme"
    problems = "\n".join(metadata_problems())
    assert "garbled: its entry_points.txt" in problems
    assert "typo: there is no group 'fl_plugins.strategy'" in problems


# -- duplicates ------------------------------------------------------------------------------------------


def test_two_owners_of_a_name_are_refused_by_name_and_told_apart_by_owner(install):
    install("acme", ONE_CODEC.format("acme_codec"), {"acme_codec.py": RULE})
    install("other", ONE_CODEC.format("other_codec"), {"other_codec.py": RULE})
    with pytest.raises(DuplicatePluginError, match=r"acme.*other|other.*acme") as caught:
        load(Kind.CODEC, "shrink")
    assert "'acme:shrink'" in str(caught.value)
    assert "'other:shrink'" in str(caught.value)
    assert not {"acme_codec", "other_codec"} & set(sys.modules)
    assert load(Kind.CODEC, "other:shrink").module == "other_codec"
    assert load(Kind.CODEC, "acme:shrink").module == "acme_codec"


def test_a_module_that_takes_a_builtins_name_is_refused_naming_both(install, tmp_path):
    (tmp_path / "site" / "my_app.py").write_text(
        "from fl_plugins.registry import Kind, register\n"
        "@register(Kind.STOPPER, 'target')\n"
        "def target(): return 'mine'\n"
    )
    load_modules("my_app")
    with pytest.raises(DuplicatePluginError, match=r"fl-plugins .*my_app") as caught:
        load(Kind.STOPPER, "target")
    assert "'my_app:target'" in str(caught.value)
    assert load(Kind.STOPPER, "my_app:target").factory() == "mine"
    assert load(Kind.STOPPER, "fl-plugins:target").module == "fl_plugins.stopping"
    assert names(Kind.STOPPER).count(("my_app", "target")) == 1


def test_two_definitions_of_one_owner_are_refused(install):
    again = RULE.replace("def shrink", "def shrink_too")
    install("acme", "", {"acme_pkg/__init__.py": "", "acme_pkg/a.py": RULE, "acme_pkg/b.py": again})
    load_modules(["acme_pkg.a", "acme_pkg.b"])
    with pytest.raises(DuplicatePluginError, match=r"two definitions in acme_pkg.*must be renamed"):
        load(Kind.CODEC, "shrink")


@pytest.mark.parametrize("first", ["entry point", "module"])
def test_one_definition_reached_by_entry_point_and_by_import_is_no_duplicate(install, first):
    install(
        "acme",
        ONE_CODEC.format("acme_pkg"),
        {
            "acme_pkg/__init__.py": "from .impl import shrink",
            "acme_pkg/impl.py": RULE,
        },
    )
    if first == "module":
        load_modules("acme_pkg.impl")
    loaded = load(Kind.CODEC, "shrink")
    load_modules("acme_pkg.impl")
    assert load(Kind.CODEC, "shrink").factory is loaded.factory is sys.modules["acme_pkg.impl"].shrink
    assert loaded.owner == "acme"
    assert loaded.paper == "Nobody 2020"
    assert names(Kind.CODEC).count(("acme", "shrink")) == 1


def test_a_lazily_re_exported_definition_imported_on_its_own_first_is_no_duplicate(install):
    install(
        "acme",
        ONE_CODEC.format("acme_pkg.plugins"),
        {
            "acme_pkg/__init__.py": "",
            "acme_pkg/plugins.py": "from .impl import shrink",
            "acme_pkg/impl.py": RULE,
        },
    )
    load_modules("acme_pkg.impl")
    assert load(Kind.CODEC, "shrink").owner == "acme"


def test_a_reloaded_module_replaces_what_it_registered(install):
    install("acme", ONE_CODEC.format("acme_codec"), {"acme_codec.py": RULE})
    old = load(Kind.CODEC, "shrink").factory
    importlib.reload(sys.modules["acme_codec"])
    new = load(Kind.CODEC, "shrink").factory
    assert new is sys.modules["acme_codec"].shrink
    assert new is not old


def test_a_file_imported_under_two_names_is_no_duplicate(install, tmp_path):
    install("acme", "", {"acme_codec.py": RULE})
    load_modules("acme_codec")
    spec = importlib.util.spec_from_file_location("acme_again", tmp_path / "site" / "acme_codec.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["acme_again"] = module
    spec.loader.exec_module(module)
    assert load(Kind.CODEC, "shrink").factory is module.shrink


def test_a_distribution_found_twice_on_the_path_counts_once(install, tmp_path, monkeypatch):
    install("acme", ONE_CODEC.format("acme_codec"), {"acme_codec.py": RULE})
    shutil.copytree(tmp_path / "site", tmp_path / "older")
    (points,) = (tmp_path / "older").glob("*/entry_points.txt")
    points.write_text(points.read_text() + "ancient = acme_codec:shrink\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "older")])
    assert names(Kind.CODEC).count(("acme", "shrink")) == 1
    assert ("acme", "ancient") not in names(Kind.CODEC)
    assert load(Kind.CODEC, "shrink").owner == "acme"


# -- unknown names and modules ---------------------------------------------------------------------------


def test_an_unknown_name_lists_the_nearest_and_all_of_its_kind():
    with pytest.raises(
        UnknownPluginError, match=r"no optimizer is called 'adma'; did you mean adam"
    ) as caught:
        load(Kind.OPTIMIZER, "adma")
    assert isinstance(caught.value, LookupError)
    for entry in available(Kind.OPTIMIZER):
        assert entry.name in str(caught.value)


def test_an_unknown_name_that_another_kind_has_says_so():
    with pytest.raises(UnknownPluginError, match="'sgd' exists, but of kind optimizer"):
        load(Kind.STOPPER, "sgd")


def test_a_wrong_owner_names_the_right_one():
    with pytest.raises(UnknownPluginError, match="did you mean fl-plugins:sgd"):
        load(Kind.OPTIMIZER, "nobody:sgd")


def test_modules_are_named_with_commas_and_blanks_and_may_be_none(install):
    install("acme", "", {"acme_a.py": RULE, "acme_b.py": RULE.replace("shrink", "grow")})
    load_modules("")
    load_modules(" acme_a ,acme_b, ")
    assert {("acme_a", "shrink"), ("acme_b", "grow")} <= set(names(Kind.CODEC))


@pytest.mark.parametrize("name", ["my-app", "my app", ".relative", "a..b", "os;x", "krum(f=2)"])
def test_a_module_that_is_no_name_is_refused(name):
    with pytest.raises(PluginLoadError, match="not the dotted name of a module"):
        load_modules(name)


@pytest.mark.parametrize(("body", "cause"), [(None, "ModuleNotFoundError"), ("1/0", "ZeroDivisionError")])
def test_a_module_that_cannot_be_imported_is_named_with_the_cause(install, body, cause):
    install("acme", "", {} if body is None else {"acme_module.py": body})
    with pytest.raises(PluginLoadError, match=f"'acme_module' cannot be imported: {cause}"):
        load_modules("acme_module")


def test_what_a_named_module_registered_before_it_failed_is_forgotten(install):
    install("acme", "", {"acme_half.py": RULE + "\n    1 / 0\n"})
    with pytest.raises(PluginLoadError, match="ZeroDivisionError"):
        load_modules("acme_half")
    with pytest.raises(UnknownPluginError):
        load(Kind.CODEC, "shrink")


@pytest.mark.parametrize("name", ["TopK", "top-k", "1k", "", "top k", "_k"])
def test_a_registered_name_must_be_snake_case(name):
    with pytest.raises(ConfigError, match="not snake_case"):
        register(Kind.CODEC, name)


def test_what_cannot_be_called_cannot_be_registered():
    with pytest.raises(ConfigTypeError, match="cannot be called"):
        register(Kind.CODEC, "three")(3)


# -- where a package comes from --------------------------------------------------------------------------

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


# -- what a signature says -------------------------------------------------------------------------------


class Shared(TypedDict, total=False):
    retries: int
    codec: Annotated["optax.GradientTransformation | None", PluginKind(Kind.CODEC)]


class Strict(Shared):
    """Options.

    Parameters
    ----------
    retries : int
        How often.
    """

    limit: "float"


@explains(Strict)
@dataclass
class StrictDefaults:
    """What the factory does with the options.

    Parameters
    ----------
    limit : float
        How far.
    """

    limit: float = 2.5
    retries: int = 7


class Base:
    """Base.

    Parameters
    ----------
    **options
        Forwarded.
    """

    def __init__(self, size: int, /, *more: str, flag: bool = False, **options: Unpack[Strict]) -> None:
        self.options = options


class Derived(Base):
    """Derived.

    Parameters
    ----------
    size : int
        How large,
        in total.

    Raises
    ------
    Nothing
        At all.
    """


def plugin(factory: Any) -> Plugin:
    return Plugin(kind=Kind.CODEC, name="p", factory=factory, owner="test", module=__name__)


def test_parameters_come_from_the_signature_the_typed_dict_and_the_docstrings():
    parameters = {parameter.name: parameter for parameter in plugin(Derived).parameters}
    assert list(parameters) == ["size", "more", "flag", "retries", "codec", "limit"]
    size, more, flag = (parameters[name] for name in ("size", "more", "flag"))
    assert (size.annotation, size.required, size.positional, size.doc) == (
        int,
        True,
        True,
        "How large, in total.",
    )
    assert (more.variadic, more.required, more.annotation) == (True, False, str)
    assert (flag.default, flag.required, flag.positional) == (False, False, False)
    assert (parameters["limit"].required, parameters["limit"].annotation) == (True, float)
    assert (parameters["limit"].default, parameters["limit"].doc) == (2.5, "How far.")
    assert (parameters["retries"].required, parameters["retries"].doc) == (False, "How often.")
    assert parameters["retries"].default == 7
    assert not plugin(Derived).accepts_any_keyword


def test_a_type_that_only_the_type_checker_knows_keeps_what_is_around_it():
    hint = {p.name: p.annotation for p in plugin(Derived).parameters}["codec"]
    union, mark = get_args(hint)
    assert mark == PluginKind(Kind.CODEC)
    assert type(None) in get_args(union)


def test_one_annotation_that_cannot_be_evaluated_spoils_no_other():
    def factory(good: "int", bad: "1 + None") -> None:  # type: ignore[valid-type]
        """Do nothing."""

    assert [p.annotation for p in plugin(factory).parameters] == [int, Any]


def test_a_partial_shows_the_documentation_of_its_function():
    def factory(a: int, b: int = 2) -> None:
        """Do nothing."""

    made = plugin(partial(factory, b=5))
    assert made.summary == "Do nothing."
    assert {p.name: p.default for p in made.parameters}["b"] == 5


def test_a_dataclass_without_a_docstring_has_no_summary():
    @dataclass
    class Config:
        x: int = 0

    assert plugin(Config).summary == ""
    assert [p.name for p in plugin(Config).parameters] == ["x"]


# -- ourselves -------------------------------------------------------------------------------------------


def test_every_builtin_is_an_entry_point_of_this_distribution():
    project = own_project()
    assert project is not None
    table = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    announced = {(kind, name) for kind in Kind for name in table.get(kind.group, {})}
    ours = {(entry.kind, entry.name) for entry in available() if entry.owner == "fl-plugins"}
    assert announced == ours
    assert {group for group in table if group.startswith("fl_plugins.")} <= {kind.group for kind in Kind}


@pytest.mark.parametrize(
    "entry",
    [entry for entry in available() if entry.owner == "fl-plugins"],
    ids=lambda entry: f"{entry.kind}-{entry.name}",
)
def test_every_builtin_loads_and_carries_its_decorator_and_documentation(entry):
    plugin = load(entry.kind, entry.qualified)
    assert any(known.factory is plugin.factory for known in registered(entry.kind, entry.name))
    assert plugin.summary
    undocumented = [p.name for p in plugin.parameters if not p.doc and p.name != "server_optimizer"]
    assert undocumented == []


def test_the_contract_of_a_plugin_is_what_its_decorator_says(install):
    contract = Contract(access=Access.SUM, weighting=Weighting.EXAMPLES)
    assert load(Kind.STRATEGY, "krum").contract == Contract(
        access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM
    )

    @register(Kind.CODEC, "summing", contract=contract)
    def summing() -> None:
        """Sum."""

    assert load(Kind.CODEC, "summing").contract == contract
