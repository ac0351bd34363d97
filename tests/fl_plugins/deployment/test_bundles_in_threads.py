"""Two runs that are started at once from two threads build their bundles one after the other."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fl_plugins.simulation.app_template import write_app
from fl_plugins.simulation.session import load_bundle


def test_bundles_can_be_built_by_several_threads(tmp_path: Path) -> None:
    """Warnings are errors here, and flwr's build warns: a filter that another thread removes is noticed."""
    app = write_app(tmp_path)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            bundles = list(pool.map(lambda _: load_bundle(app), range(40)))
    finally:
        sys.setswitchinterval(before)
    assert len(set(bundles)) == 1
