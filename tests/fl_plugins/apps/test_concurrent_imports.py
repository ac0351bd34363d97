"""Flower imports a run's ServerApp and ClientApp in two threads of one process, at the same time.

Whoever imports ``package.module`` holds the module's lock while the package is imported. Two threads that
enter a package by different modules can then wait for each other, and Python ends that by handing one of them
a module that is only half there.
"""

import subprocess
import sys

import pytest

CODE = """
import importlib, importlib.abc, sys, threading

inside, go_on = threading.Event(), threading.Event()

class Pause(importlib.abc.MetaPathFinder):
    "Holds up the first thread while it is in the middle of the project."

    def find_spec(self, name, path, target=None):
        if name == "fl_plugins.records" and not inside.is_set():
            inside.set()
            go_on.wait(5)
        return None

sys.meta_path.insert(0, Pause())
problems = []

def load(name):
    try:
        importlib.import_module(name)
    except Exception as error:
        problems.append(f"{name}: {error}")

first, second = (threading.Thread(target=load, args=(name,)) for name in sys.argv[1:])
first.start()
assert inside.wait(20)
second.start()
second.join(1)  # it has come as far as it comes
go_on.set()
first.join()
second.join()
print(problems)
"""


@pytest.mark.parametrize("first", ["fl_plugins.apps.client_app", "fl_plugins.apps.server_app", "strategies"])
@pytest.mark.parametrize(
    "second",
    ["fl_plugins.aggregation.core", "strategies", "fl_plugins.apps.client_app", "fl_plugins.finiteness"],
)
def test_two_threads_that_import_the_project_at_once_both_succeed(first: str, second: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, first, second], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
