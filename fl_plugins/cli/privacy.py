"""``fl-plugins privacy``: plan a budget, read what a ledger says was spent, audit what is promised."""

import argparse
from pathlib import Path
from typing import Any

from ._audits import add_audits

_ADJACENCIES = ("add_remove", "replace", "zero_out")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("privacy", help="plan a privacy budget, report what was spent, audit")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    plan = commands.add_parser("plan", help="the least noise for a budget")
    plan.add_argument("--epsilon", type=float, required=True)
    plan.add_argument("--delta", type=float, required=True)
    plan.add_argument("--rounds", type=int, required=True)
    plan.add_argument("--clients", type=int, required=True, help="how many units the population has")
    plan.add_argument("--sample", type=int, help="how many take part in a round (on average); default: all")
    plan.add_argument(
        "--separation", type=int, help="rounds before a unit takes part again (min_separation); default: none"
    )
    plan.add_argument("--unit", choices=("client", "record"), default="client", help="default: client")
    plan.add_argument(
        "--adjacency", choices=_ADJACENCIES, help="what neighbours differ in; default: a plan for each"
    )
    plan.set_defaults(run=run_plans)
    report = commands.add_parser("report", help="what a ledger's population has spent")
    report.add_argument("ledger", type=Path)
    report.add_argument("--delta", type=float, required=True)
    report.set_defaults(run=run_report)
    add_audits(commands)


def run_plans(args: argparse.Namespace) -> int:
    """Print a plan for the adjacency asked for, or one for each: no ε is told without its adjacency."""
    for adjacency in (args.adjacency,) if args.adjacency else _ADJACENCIES:
        _print_plan(args, adjacency)
    return 0


def _print_plan(args: argparse.Namespace, adjacency: str) -> None:
    """Print σ, ε after a round, and what PLD saves."""
    from fl_plugins.privacy import (
        Accountant,
        Budget,
        Everyone,
        FixedSize,
        Method,
        MinSeparation,
        NeighborRelation,
        Poisson,
        Sampling,
    )
    from fl_plugins.privacy.calibration import plan

    relation = NeighborRelation.of(unit=args.unit, adjacency=adjacency)
    sampling: Sampling = Everyone()
    rounds, one_release = args.rounds, "one round"
    if args.separation is not None:
        size = args.clients // max(args.separation, 1) if args.sample is None else args.sample
        sampling = MinSeparation(size=size, rounds=args.separation, population=args.clients)
        rounds, one_release = -(-args.rounds // args.separation), "one block"
    elif args.sample is not None and args.sample != args.clients:
        if adjacency == "replace":
            sampling = FixedSize(size=args.sample, population=args.clients)
        else:
            sampling = Poisson(rate=args.sample / args.clients, population=args.clients)
    budget = Budget(epsilon=args.epsilon, delta=args.delta)
    best = plan(budget, rounds=rounds, sampling=sampling, relation=relation)
    one = Accountant(relation)
    one.compose(best.release)
    print(f"adjacency         {adjacency}")
    print(f"sampling          {sampling}")
    print(f"noise multiplier  {best.noise_multiplier:.4f} (standard deviation on the sum / clip norm)")
    print(f"after {one_release}   {one.report(args.delta)}")
    print(f"after {args.rounds} rounds  {best.report}")
    if best.report.method is Method.PLD:
        whole = sampling
        if isinstance(sampling, Poisson):  # RDP has no tight form for the cut at max_cohort
            whole = Poisson(
                rate=sampling.rate, population=sampling.population, max_cohort=sampling.population
            )
        rdp = plan(budget, rounds=rounds, sampling=whole, relation=relation, method=Method.RDP)
        less = 1.0 - best.noise_multiplier / rdp.noise_multiplier
        print(f"by RDP            {rdp.noise_multiplier:.4f}; PLD saves {less:.1%} of the noise")


def run_report(args: argparse.Namespace) -> int:
    """Print what was spent."""
    from fl_plugins.errors import DataError
    from fl_plugins.privacy.ledger import Ledger

    if not args.ledger.is_file():
        raise DataError(f"privacy report: {args.ledger} is no file; give the path of a privacy ledger.")
    ledger = Ledger.read(args.ledger)
    print(f"population  {ledger.population}")
    print(f"spent       {ledger.report(args.delta)}")
    for release, count in ledger.accountant.counts.items():
        print(f"  {count} × {release.mechanism}, {release.sampling}")
    print(f"pending     {ledger.pending} reservations without a commit count as spent")
    print(f"head        {ledger.head}")
    return 0
