"""``examples/third_party_plugin``, as if it were installed from its own ``pyproject.toml``."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "third_party_plugin"
REPOSITORY = EXAMPLE.parents[1]


@pytest.fixture
def run(install, python, tmp_path):
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    direct = {"url": EXAMPLE.as_uri(), "dir_info": {"editable": True}}
    site = install(project["name"], "\n".join(lines), extra={"direct_url.json": json.dumps(direct)})

    def run(code):
        done = python(code, cwd=tmp_path, path=(site, EXAMPLE / "src", REPOSITORY))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_example_is_listed_shown_and_built_by_name(run):
    out = run("""
        from fl_plugins.cli import main
        from fl_plugins.registry import Kind
        from fl_plugins.spec import build
        assert main(["show", "fl-plugins-example:sign_vote"]) == 0
        strategy = build(Kind.STRATEGY, "sign-vote(step=0.003, quorum=0.75)")
        print(strategy.aggregator, strategy.settings.quorum)
    """)
    assert "aggregator sign_vote (fl-plugins-example, fl_plugins_example.sign_vote)" in out
    assert "strategy sign_vote (fl-plugins-example, fl_plugins_example.strategy)" in out
    assert "quorum: float = 0.5" in out
    assert out.splitlines()[-1] == "SignVote(step=0.003) 0.75"


def test_the_examples_rule_is_the_majority_of_signs(run):
    out = run("""
        import json, numpy as np
        from fl_plugins.registry import Kind
        from fl_plugins.spec import build
        updates = np.random.default_rng(0).integers(-2, 3, size=(5, 40)).astype(np.float64)
        aggregate = build(Kind.AGGREGATOR, "sign_vote(step=0.5)")(updates)
        print(json.dumps([updates.tolist(), aggregate.value.tolist(), aggregate.contribution.tolist()]))
    """)
    updates, value, contribution = json.loads(out)
    agreed = np.zeros(5)
    for column, moved in zip(zip(*updates, strict=True), value, strict=True):
        positive, negative = sum(u > 0 for u in column), sum(u < 0 for u in column)
        winner = (positive > negative) - (positive < negative)
        assert moved == 0.5 * winner
        agreed += [winner != 0 and u * winner > 0 for u in column]
    np.testing.assert_allclose(contribution, agreed / agreed.sum(), rtol=1e-12)  # one division in float64
