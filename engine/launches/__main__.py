"""Print the tables of docs/gpu.md, write them into it, or check that they are there."""

import argparse
import sys
from collections.abc import Iterable, Set
from pathlib import Path

from engine.launches.budget import LAYER_NAMES, budget_of, launches_table, parts_table
from engine.launches.record import Started, record_sampling, record_step, record_warm_up
from engine.launches.shapes import (
    DECODE,
    MODELS,
    ODD_STEPS,
    PREFILL,
    STEPS,
    few_layers,
    of_rank,
    random_batches,
    random_steps,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"
MODEL = MODELS["35B-A3B"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.launches", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    budget = commands.add_parser("budget", help="what a step moves, computes and takes at least")
    compile = commands.add_parser("compile", help="compile every kernel for every target")
    for command in (budget, compile):
        command.add_argument("--write", action="store_true", help="into docs/gpu.md")
    compile.add_argument("--capability", type=int, help="of one target, such as 90")
    compile.add_argument("--ranks", type=int, help="for one rank of so many")
    commands.add_parser("check", help="fail if docs/gpu.md is not what these commands write")
    args = parser.parse_args()
    if args.command == "check":
        return _report(_stale(DOCUMENT.read_text()))
    if args.command == "compile":
        if args.write and (args.capability or args.ranks):
            parser.error("--write takes every target and every number of ranks")
        lines, found = _compile(args.capability, args.ranks)
    else:
        lines, found = _budget(), list[str]()
    if args.write:
        DOCUMENT.write_text(_replaced(DOCUMENT.read_text(), args.command, lines))
    else:
        print("\n".join(lines))
    return _report(found)


def _budget() -> list[str]:
    lines: list[str] = []
    for step in STEPS:
        budget = budget_of(MODEL, step)
        lines += ["", f"### {step}", "", *parts_table(budget)]
        if step in (DECODE[0], PREFILL):
            for kind, started in budget.layers.items():
                lines += ["", f"Its {LAYER_NAMES[kind]}:", "", *launches_table(started)]
        if budget.exceeding:
            excess = ", ".join(f"{name} {ratio:.2f}" for name, ratio in budget.exceeding.items())
            lines += ["", f"More than 1.15 of what is necessary: {excess}."]
    for ranks in (2, 4, 8):
        budget = budget_of(of_rank(MODEL, ranks), DECODE[0])
        lines += ["", f"### {DECODE[0]}, one of {ranks} ranks", "", *parts_table(budget)]
    return lines


def _compile(capability: int | None, ranks: int | None) -> tuple[list[str], list[str]]:
    """The table, and what is wrong with what it shows."""
    from engine.launches.binaries import RANKS, compile_needed, faults, needed, table
    from kernels.devices import TARGETS

    targets = [t for t in TARGETS if capability in (None, t.capability)]
    needs = needed({name: (ranks,) if ranks else numbers for name, numbers in RANKS.items()})
    binaries = compile_needed([need.variant for need in needs], targets)
    found = [
        fault
        for need in needs
        for target in targets
        for fault in faults(need, binaries[need.variant.key][target.capability], target)
    ]
    return table(needs, binaries, targets), found


def _stale(document: str) -> list[str]:
    from engine.launches.binaries import RANKS, cell_faults, needed

    found: list[str] = []
    if _replaced(document, "budget", _budget()) != document:
        found.append("docs/gpu.md: run `python -m engine.launches budget --write`")
    listed = needed(RANKS)
    missing = [need.title for need in listed if f"| {need.variant.key[:8]} |" not in document]
    if missing:
        found.append(
            f"docs/gpu.md has no row for {', '.join(missing)}: "
            "run `python -m engine.launches compile --write`"
        )
    found += [f"docs/gpu.md: {fault}" for fault in cell_faults(document)]
    return found + _late({need.variant.key for need in listed})


def _late(listed: Set[str]) -> list[str]:
    """What would be compiled while serving: it is in no warm-up, or in no table."""
    from engine.launches.binaries import RANKS, launched

    found: set[str] = set()

    def look(where: str, started: Iterable[Started], known: Set[str], place: str) -> None:
        for variant in launched(started):
            if variant.key not in known:
                found.add(f"{where}: {variant.name} {variant.key[:8]} is in no {place}")

    for name in RANKS:
        model = few_layers(MODELS[name])
        warm_up = record_warm_up(model)
        look(f"{name}, warm-up", warm_up, listed, "table")
        warmed = {variant.key for variant in launched(warm_up)}
        for step in (*STEPS, *ODD_STEPS, *random_steps(16)):
            look(f"{name}, {step}", record_step(model, step), warmed, "warm-up")
    for batch, masked in random_batches(50):  # the table's kernels of sampling are the warm-up's
        look("sampling", record_sampling(batch, masked), listed, "table")
    return sorted(found)


def _replaced(document: str, name: str, lines: list[str]) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = document.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the document has no {begin} ... {end}")
    body = "\n".join(lines).strip()
    return f"{before}{begin}\n\n{body}\n\n{end}{after}"


def _report(found: list[str]) -> int:
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
