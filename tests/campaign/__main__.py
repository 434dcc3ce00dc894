"""Runs every case, interrupts every command, and says what was answered badly.

python -m tests.campaign [--kind WORDS] [--every N] [--untrained] [--world FOLDER]
"""

import argparse
import collections
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # what is tiny compiles longest
os.environ["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", "")  # nothing starts again

import tests.preloaded  # noqa: F401 - once, for all that are forked
from tests.campaign import asking, damaged, interrupted, outside, trial, world

KINDS = (damaged, outside, asking)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", default="", help="those whose kind or name has these words")
    parser.add_argument("--world", type=Path, help="where what they start from is, or is made")
    parser.add_argument("--every", type=int, default=1, help="only each N-th case")
    parser.add_argument(
        "--untrained", action="store_true", help="only what starts from no run, nor makes one"
    )
    parser.add_argument("--verbose", action="store_true", help="print what is said in each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = args.world or Path(scratch, "world")
        if not made.exists():
            world.make(made, trained=not args.untrained)
        cases = [c for module in KINDS for c in module.cases(made)]
        cases = [c for c in cases if args.kind in f"{c.kind}: {c.name}"]
        chosen = [t for t in interrupted.trials() if args.kind in f"interrupted: {t.name}"]
        if args.untrained:
            cases = [c for c in cases if _without_runs(made, c, trains=trial.FINE in c.codes)]
            chosen = [t for t in chosen if _without_runs(made, t.job, trains=True)]
        cases, chosen = cases[:: args.every], chosen[:: args.every]
        begun = time.monotonic()
        counts, bad = collections.Counter(), collections.Counter()
        for answer in trial.run_all(cases, made, Path(scratch, "trials")):
            counts[answer.case.kind] += 1
            if answer.wrong or args.verbose:
                bad[answer.case.kind] += bool(answer.wrong)
                print(f"{answer.case.kind}: {answer.case.name}: {'; '.join(answer.wrong)}")
                print(f"    {answer.code} {answer.seconds:.1f} s {answer.said.strip()[-700:]!r}")
        kills = 0
        for each, wrong, killed in interrupted.run_all(chosen, made, Path(scratch, "interrupted")):
            counts[f"{each.job.name}, in the middle"] += 1
            kills += killed
            if wrong or args.verbose:
                bad[f"{each.job.name}, in the middle"] += bool(wrong)
                print(f"{each.name}: {'; '.join(wrong)}", flush=True)
        for kind, count in counts.items():
            print(f"{kind:44}{count:6}{bad[kind]:6} badly")
        total = sum(bad.values())
        print(
            f"{len(cases)} cases and {len(chosen)} interruptions with {kills} kills in "
            f"{time.monotonic() - begun:.0f} s, {total} answered badly"
        )
        sys.exit(bool(total))


def _without_runs(made, what, trains):
    needed = all((made / name).exists() for name in what.needs)
    return needed and not (trains and what.words[0] == world.MAIN)


if __name__ == "__main__":
    main()
