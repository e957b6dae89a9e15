"""Whether all variants learn alike: same first weights, same number of steps, one judge."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark.comparison import say
from experiments.benchmark.workers import Variant, WorkerFailed, Workers

JUDGE = Variant("judge", "experiments.benchmark.judge:Judge", {})
TOLERANCE_NATS = 0.5


def verify(
    workers: Workers, names: Sequence[str], steps: int, arguments: dict[str, Any], title: str
) -> dict[str, dict[str, Any]]:
    """Train every variant from the same weights, and judge its final raw weights.

    The variants draw their own noise and orders of the data, and 300 steps with either leave the
    test ELBO about 0.2 nats of standard deviation: so each is held against the median of all.

    Args:
        workers: that hold the variants.
        names: of those to be trained.
        steps: of training.
        arguments: of `judge.Judge`.
        title: of the comparison, for what is shown meanwhile.

    Returns:
        Name -> its test "elbo" with "standard_error", its "difference" from the median of all,
        and whether that "agrees", or an "error" in one line.
    """
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="jaxvae-benchmark-") as folder:
        initial = str(Path(folder) / "initial.npz")
        workers.prepare(JUDGE._replace(arguments=arguments))
        workers.ask(JUDGE.name, "write_initial", path=initial)
        for index, name in enumerate(names):
            say(f"{title}: training {name} for {steps} steps, to see what it learns")
            final = str(Path(folder) / f"final-{index}.npz")
            try:
                workers.ask(name, "train", initial=initial, steps=steps, final=final)
                found[name] = workers.ask(JUDGE.name, "elbo", path=final)
            except WorkerFailed as error:
                found[name] = {"error": str(error)}
    return with_differences(found)


def with_differences(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was found, with each ELBO's difference from the median of all.

    >>> with_differences({"x": {"value": -100.0}, "y": {"value": -100.2}})["x"]["agrees"]
    True
    """
    values = [result["value"] for result in found.values() if "value" in result]
    middle = statistics.median(values) if values else 0.0
    return {
        name: result
        if "error" in result
        else result
        | {
            "difference": result["value"] - middle,
            "agrees": abs(result["value"] - middle) <= TOLERANCE_NATS,
        }
        for name, result in found.items()
    }
