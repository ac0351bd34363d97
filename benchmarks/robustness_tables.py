"""The robustness benchmark's results as Markdown tables."""

from typing import Any

import numpy as np
from robustness_attacks import ATTACKS, BASELINES


def report(records: list[dict[str, Any]], *, defences: list[str], recommended: str) -> str:
    """Return Markdown: per setting a table of mean accuracy over seeds, in percent, and the worst case.

    Rows come in the order of ``defences``, the recommended one in bold.
    """
    lines: list[str] = []
    key = ("dataset", "heterogeneity", "num_byzantine", "num_clients")
    key += ("rounds", "local_steps", "learning_rate")
    settings = sorted({tuple(record[name] for name in key) for record in records})
    for setting in settings:
        chosen = [record for record in records if tuple(record[name] for name in key) == setting]
        dataset, heterogeneity, f, n, rounds, steps, rate = setting
        lines += [
            f"### {dataset}, {heterogeneity}, f = {f} of {n}",
            "",
            f"{rounds} rounds of {steps} local steps, learning rate {rate:g} with cosine decay; mean of "
            f"{len({record['seed'] for record in chosen})} seeds.",
            "",
            *_table(chosen, defences, recommended),
            "",
        ]
    return "\n".join(lines)


def _table(records: list[dict[str, Any]], defences: list[str], recommended: str) -> list[str]:
    """Return one setting's table.

    A mean of fewer seeds than the table's has their number beside it, and a worst case from fewer attacks
    than the table's is an upper bound, with ``<=``: what was not measured never looks as if it were.
    """
    attacks = [name for name in ATTACKS if any(record["attack"] == name for record in records)]
    hostile_attacks = [name for name in attacks if name not in BASELINES]
    num_seeds = len({record["seed"] for record in records})
    header = ["defence", *attacks]
    if hostile_attacks:
        header += ["**worst**", "which"]
    if "backdoor" in attacks:
        header.append("backdoor success")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for defence in defences:
        mine = [record for record in records if record["defence"] == defence]
        if not mine:
            continue
        scores = {attack: _values(mine, attack, "accuracy") for attack in attacks}
        row = [f"**{defence}**" if defence == recommended else defence]
        row += [_percent(scores[attack], num_seeds) for attack in attacks]
        measured = {name: scores[name] for name in hostile_attacks if scores[name]}
        if measured:
            worst = min(measured, key=lambda name: float(np.mean(measured[name])))
            complete = all(len(scores[name]) == num_seeds for name in hostile_attacks)
            row += [("" if complete else "<= ") + _percent(measured[worst], num_seeds), worst]
        elif hostile_attacks:
            row += ["–", "–"]
        if "backdoor" in attacks:
            row.append(_percent(_values(mine, "backdoor", "success"), num_seeds))
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _values(records: list[dict[str, Any]], attack: str, what: str) -> list[float]:
    """Return one number per seed measured."""
    return [record[what] for record in records if record["attack"] == attack and what in record]


def _percent(values: list[float], num_seeds: int) -> str:
    """Return the mean in percent; the number of seeds too where some are missing."""
    if not values:
        return "–"
    seeds = "" if len(values) == num_seeds else f" ({len(values)} of {num_seeds} seeds)"
    return f"{100 * float(np.mean(values)):.1f}{seeds}"
