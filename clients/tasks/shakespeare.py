"""Next-character prediction in Shakespeare's plays; a client is a speaking role.

The natural split of McMahan et al. 2017, §3, and Caldas et al. 2018 (LEAF), on a text file in which every
speech begins with a line ``Role:`` after an empty line.
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_plugins.errors import ConfigError, ConfigTypeError, DataError
from fl_plugins.registry import Kind, register
from fl_plugins.training import ClientData, Dataset, Task

from ..losses import accuracy, softmax_cross_entropy
from ..models import nnx_model
from ..networks import Transformer
from ..partition import check_partition_id
from ._folder import data_path

_ROLE = re.compile(r"([^\n:]+):(?:\n|\Z)")


@register(Kind.TASK, "shakespeare", paper="McMahan et al. 2017, §3; Caldas et al. 2018")
def shakespeare(
    *,
    path: str | None = None,
    context: int = 64,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    min_examples: int = 4,
    test_fraction: float = 0.1,
    validation_fraction: float = 0.1,
) -> Task:
    """Return the task of predicting every next character with a small transformer.

    ``x`` is ``(n, context)`` int32, ``y`` the same one character on: a role's speeches, one after another,
    cut into windows. Partition i is the role with the i-th most windows, so N partitions are the N roles that
    speak most. Each role's last windows are held out: first for the common test set, before them for its own
    validation.

    Parameters
    ----------
    path : str, optional
        The text file; by default ``shakespeare/tinyshakespeare.txt`` inside ``$FL_PLUGINS_DATA``.
    context : int
        Characters per example, >= 1.
    width, depth, heads : int
        The transformer's; ``heads`` divides ``width``.
    min_examples : int
        Roles with fewer windows are left out, >= 1.
    test_fraction, validation_fraction : float
        Shares of a role's windows, rounded down; in [0, 1), together below 1.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    DataError
        If there is no such file, or no role in it speaks enough.
    """
    for name, value in {
        "context": context, "width": width, "depth": depth, "heads": heads, "min_examples": min_examples,
    }.items():  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigTypeError(f"shakespeare: {name}={value!r} must be an int; give a whole number.")
        if value < 1:
            raise ConfigError(f"shakespeare: {name}={value} must be >= 1; raise it.")
    if width % heads:
        raise ConfigError(f"shakespeare: heads={heads} must divide width={width}; try heads=1.")
    fractions = test_fraction, validation_fraction
    if not all(0 <= share < 1 for share in fractions) or sum(fractions) >= 1:
        raise ConfigError(
            f"shakespeare: test_fraction={test_fraction!r} and validation_fraction={validation_fraction!r} "
            "must be in [0, 1) and together below 1; try 0.1 each."
        )
    file = data_path(path, "shakespeare/tinyshakespeare.txt", task="shakespeare")
    speeches = read_speeches(file)
    characters = sorted(set().union(*speeches.values()))
    codes = {character: code for code, character in enumerate(characters)}
    windows = {role: _windows(text, codes, context=context) for role, text in speeches.items()}
    roles = sorted(
        (role for role in windows if len(windows[role]) >= min_examples), key=lambda r: (-len(windows[r]), r)
    )
    if not roles:
        raise DataError(
            f"shakespeare: no role in {file} has min_examples={min_examples} windows of {context} "
            "characters; lower one of the two."
        )

    @cache
    def split(role: str) -> tuple[Dataset, Dataset, Dataset]:
        rows = windows[role]
        num_test, num_validation = (int(share * len(rows)) for share in fractions)
        num_train = len(rows) - num_test - num_validation
        parts = rows[:num_train], rows[num_train : num_train + num_validation], rows[len(rows) - num_test :]
        train, validation, test = (Dataset(part[:, :-1], part[:, 1:]) for part in parts)
        return train, validation, test

    def load_partition(partition_id: int, num_partitions: int) -> ClientData:
        check_partition_id(partition_id, num_partitions, task="shakespeare")
        if num_partitions > len(roles):
            raise DataError(
                f"shakespeare: {num_partitions} partitions, but only {len(roles)} roles have "
                f"min_examples={min_examples} windows; use fewer partitions or lower min_examples."
            )
        train, validation, _ = split(roles[partition_id])
        return ClientData(train=train, validation=validation)

    def load_test() -> Dataset:
        tests = [split(role)[2] for role in roles]
        test = Dataset(np.concatenate([t.x for t in tests]), np.concatenate([t.y for t in tests]))
        if len(test) == 0:
            raise DataError(f"shakespeare: test_fraction={test_fraction!r} leaves no window; raise it.")
        return test

    return Task(
        name="shakespeare",
        model=nnx_model(
            lambda rngs: Transformer(
                len(characters), context=context, width=width, depth=depth, heads=heads, rngs=rngs
            )
        ),
        loss=softmax_cross_entropy,
        metrics={"accuracy": accuracy},
        load_partition=load_partition,
        load_test=load_test if test_fraction > 0 else None,
        num_classes=None,
    )


def read_speeches(file: Path) -> dict[str, str]:
    """Return what each role says, speeches joined by an empty line; roles in the order they first speak."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"shakespeare: {file} cannot be read ({error}); give a UTF-8 text file.") from error
    speeches: dict[str, list[str]] = {}
    said: list[str] | None = None
    for paragraph in re.split(r"\n{2,}", text.strip()):
        if heading := _ROLE.match(paragraph):
            said = speeches.setdefault(heading[1], [])
        if said is not None and (speech := paragraph[heading.end() if heading else 0 :]):
            said.append(speech)
    if not speeches:
        raise DataError(f"shakespeare: {file} has no line 'Role:' after an empty one; give a play.")
    return {role: "\n\n".join(parts) for role, parts in speeches.items()}


def _windows(text: str, codes: dict[str, int], *, context: int) -> NDArray[np.int32]:
    """Return ``(n, context + 1)`` codes; each window begins with the last character of the one before."""
    encoded = np.array([codes[character] for character in text], np.int32)
    count = max(0, (len(encoded) - 1) // context)
    starts = np.arange(count)[:, None] * context
    windows: NDArray[np.int32] = encoded[starts + np.arange(context + 1)]
    return windows
