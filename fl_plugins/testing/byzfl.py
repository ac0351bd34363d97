"""byzfl's NumPy rules without PyTorch: an independent oracle for tests and benchmarks.

byzfl (``pip install --no-deps byzfl``) imports torch and torchvision, some gigabytes, before anything of it
can be used, although its rules work on NumPy arrays without either. Only its modules of rules are imported
here, with a stand-in for ``torch`` whose one name, ``Tensor``, no NumPy array is an instance of.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


def load_byzfl() -> ModuleType:
    """Return a module with byzfl's aggregators and pre-aggregators, for NumPy arrays only.

    Raises
    ------
    ModuleNotFoundError
        If byzfl is not installed.
    """
    found = importlib.util.find_spec("byzfl")  # finds it, does not import it
    if found is None or found.origin is None:
        raise ModuleNotFoundError("byzfl is not installed; pip install --no-deps byzfl", name="byzfl")
    face = ModuleType("byzfl")
    face.__path__ = [str(Path(found.origin).parent)]
    torch, linalg = ModuleType("torch"), ModuleType("torch.linalg")
    torch.Tensor = type("Tensor", (), {})  # type: ignore[attr-defined]
    torch.linalg = linalg  # type: ignore[attr-defined]
    torch.__path__ = []
    with _standing_in({"byzfl": face, "torch": torch, "torch.linalg": linalg}):
        for name in ("aggregators", "preaggregators"):
            rules = importlib.import_module(f"byzfl.aggregators.{name}")
            for rule in vars(rules).values():
                if isinstance(rule, type) and rule.__module__ == rules.__name__:
                    setattr(face, rule.__name__, rule)
    return face


@contextmanager
def _standing_in(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Let ``import`` find these modules, and forget them and what they brought afterwards."""

    def ours(name: str) -> bool:
        return name.partition(".")[0] in modules

    before = {name: module for name, module in sys.modules.items() if ours(name)}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)
