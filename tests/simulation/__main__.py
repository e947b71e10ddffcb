"""`python -m tests.simulation --seed S --steps N`: episodes from one seed; the first failure ends it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.episode import RATES, Episode
from tests.simulation.world import World

EPISODE_STEPS = 2500


def history(world: World) -> str:
    """This function will write down the last steps of a world, one per line."""
    return "\n".join(
        f"{now:12.4f}  {who:<9} {what}  {detail or ''}  -> {answer!r}"
        for now, who, what, detail, answer in world.trace
    )


def main(arguments: list[str] | None = None) -> int:
    """This function will run the simulation and return 0, or 1 after a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", default="1", help="any text; an episode's own seed repeats that episode")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--only", help="what the environment may do, by comma: " + ", ".join(RATES))
    options = parser.parse_args(arguments)
    features = None if options.only is None else frozenset(filter(None, options.only.split(",")))
    faults: Counter[str] = Counter()
    steps = number = 0
    began = time.perf_counter()
    out = sys.stdout.write
    while steps < options.steps:
        seed = options.seed if "/" in options.seed else f"{options.seed}/{number}"
        episode = Episode(seed, features)
        try:
            episode.run(EPISODE_STEPS)
        except Exception as error:  # noqa: BLE001  whatever it is, the seed and the steps belong to it
            out(f"{history(episode.world)}\n\nseed {seed}: {type(error).__name__}: {error}\n")
            out(f"features: {', '.join(sorted(episode.features)) or 'none'}\n")
            return 1
        steps, number = steps + episode.steps, number + 1
        faults += episode.world.faults
        if "/" in options.seed:
            break
    seconds = time.perf_counter() - began
    for name, times in sorted(faults.items()):
        out(f"  {name:<20} {times:>9}\n")
    speed = f"{steps / seconds:,.0f} steps/s"
    out(f"seed {options.seed}: {number} episodes, {steps} steps, no violation, {speed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
