"""The registry, against fake distributions that are really on ``sys.path``."""

import importlib
import shutil
import sys

import pytest

from fl_plugins.errors import (
    ConfigError,
    ConfigTypeError,
    DuplicatePluginError,
    PluginLoadError,
    UnknownPluginError,
)
from fl_plugins.registry import Kind, available, load, load_modules, metadata_problems, register
from fl_plugins.registry._registrations import registered

from .fake_plugins import ONE_CODEC, RULE


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
