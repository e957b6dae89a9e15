"""Comparison of what the variants learn: same initial weights, same number of steps, one judge."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmark.comparison import say
from experiments.benchmark.workers import Variant, WorkerFailed, Workers

JUDGE = Variant("judge", "experiments.benchmark.judge:Judge", {})
TOLERANCE_NATS = 0.5
TOLERANCE_SHARE = 0.005
"""Tolerance of bounds beyond 100 nats, as a share of them: those of larger images."""
NUM_SNAPSHOTS = 10
"""Snapshots of a run's weights that are averaged for the judge, a fiftieth of the steps apart."""


class Training(NamedTuple):
    """Number of steps that the variants train before they are judged, and most runs of each."""

    steps: int
    runs: int


def verify(
    workers: Workers,
    names: Sequence[str],
    training: Training,
    arguments: dict[str, Any],
    title: str,
) -> dict[str, dict[str, Any]]:
    """Train every variant from the same weights, and judge the mean of its last weights.

    The judge is the test bound that the net is trained on. The variants draw their own noise and
    data order, which makes the weights of a single step noisy; so the raw weights of the last fifth
    of the steps are averaged, for all variants alike. Every variant is compared with the median of
    all in the same run. If one differs by more than the tolerance, all train again, from other
    weights, and the median of a variant's differences counts: three of 32 runs of net d, each of
    another program, were 2 nats off.

    Args:
        workers: processes that hold the variants.
        names: names of the variants to train.
        training: number of steps, and most runs.
        arguments: arguments of `judge.Judge`.
        title: name of the comparison in progress messages.

    Returns:
        Name -> result of `with_differences`, or an "error" in one line.
    """
    found: dict[str, dict[str, Any]] = {name: {"bounds": []} for name in names}
    with tempfile.TemporaryDirectory(prefix="jaxvae-benchmark-") as folder:
        initial = str(Path(folder) / "initial.npz")
        snapshots = [(steps, str(Path(folder) / f"{steps}.npz"))
                     for steps in snapshot_steps(training.steps)]  # fmt: skip
        workers.prepare(JUDGE._replace(arguments=arguments))
        for seed in range(training.runs):
            workers.ask(JUDGE.name, "write_initial", path=initial, seed=seed)
            for name in [name for name in names if "error" not in found[name]]:
                say(
                    f"{title}: training {name} for {training.steps} steps to judge its weights, "
                    f"run {seed + 1} of {training.runs}"
                )
                try:
                    workers.ask(name, "train", initial=initial, snapshots=snapshots, seed=seed)
                    paths = [path for _, path in snapshots]
                    judged = workers.ask(JUDGE.name, "bound", paths=paths)
                    found[name]["bounds"].append(judged["value"])
                except WorkerFailed as error:
                    found[name] = {"error": str(error)}
            results = with_differences(found)
            if all(result.get("agrees", True) for result in results.values()):
                break
    return results


def tolerance(bound: float) -> float:
    """Largest difference from the median bound, in nats, that counts as agreement."""
    return max(TOLERANCE_NATS, TOLERANCE_SHARE * abs(bound))


def snapshot_steps(steps: int) -> list[int]:
    """Numbers of steps after which the weights are stored.

    >>> snapshot_steps(1000)
    [820, 840, 860, 880, 900, 920, 940, 960, 980, 1000]
    >>> snapshot_steps(3)
    [1, 2, 3]
    """
    apart = max(1, steps // 50)
    return [taken for i in reversed(range(NUM_SNAPSHOTS)) if (taken := steps - i * apart) > 0]


def with_differences(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add to each variant its "bound", its "difference", and whether it "agrees".

    Bound and difference are medians over the runs; the difference of a run is that from the median
    of all variants in the same run.

    >>> with_differences({"x": {"bounds": [-100.0]}, "y": {"bounds": [-100.2]}})["x"]["agrees"]
    True
    """
    trained = [result["bounds"] for result in found.values() if "bounds" in result]
    middles = [statistics.median(run) for run in zip(*trained, strict=True)]
    results = {}
    for name, result in found.items():
        if "bounds" in result:
            pairs = zip(result["bounds"], middles, strict=True)
            difference = statistics.median(bound - middle for bound, middle in pairs)
            result = result | {
                "bound": statistics.median(result["bounds"]),
                "difference": difference,
                "agrees": abs(difference) <= tolerance(statistics.median(middles)),
            }
        results[name] = result
    return results
