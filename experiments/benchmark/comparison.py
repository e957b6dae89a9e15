"""One comparison: prepare its variants, measure them in rounds, collect their descriptions."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.benchmark.rounds import Rounds, interleaved
from experiments.benchmark.workers import Variant, WorkerFailed, Workers
from experiments.record.progress import announced


class Comparison(NamedTuple):
    """Results of the variants of one comparison.

    Attributes:
        rounds: measurements of each variant, in the order of the variants.
        about: description that each variant returned once it was prepared.
        failed: variants that could not be measured, each with the reason in one line.
    """

    rounds: Rounds
    about: dict[str, dict[str, Any]]
    failed: dict[str, str]

    def setting(self, name: str) -> str:
        """Setting that a variant used in most rounds, or reported itself; "" if it has no setting.

        The fastest of a variant's settings may differ from round to round.
        """
        seen = [round_["setting"] for round_ in self.rounds[name] if "setting" in round_]
        if not seen:
            return self.about[name].get("setting", "")
        (most, count), *_ = Counter(seen).most_common(1)
        return most if count == len(seen) else f"{most} ({count} of {len(seen)} rounds)"

    def to_json(self) -> dict[str, Any]:
        """Convert the results to JSON types."""
        variants = {
            name: {"about": self.about[name], "rounds": rounds}
            for name, rounds in self.rounds.items()
        }
        return {"variants": variants, "failed": self.failed}


def say(text: str) -> None:
    """Print progress to standard error; standard output holds only the tables."""
    print(text, file=sys.stderr, flush=True)


def compare(workers: Workers, variants: Sequence[Variant], rounds: int, title: str) -> Comparison:
    """Prepare the variants one after the other, then measure them in rounds.

    Args:
        workers: processes that hold the variants; still running on return.
        variants: variants to compare.
        rounds: number of rounds.
        title: name of the comparison in progress messages.
    """
    about: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}

    def lost(name: str, error: WorkerFailed) -> None:
        failed[name] = str(error)
        say(f"{title}: left out: {error}")

    for variant in variants:
        try:
            with announced(f"{title}: preparing {variant.name}"):
                about[variant.name] = workers.prepare(variant)
        except WorkerFailed as error:
            lost(variant.name, error)

    def measure(name: str) -> dict[str, Any] | None:
        try:
            with announced(f"{title}: measuring {name}"):
                return workers.ask(name, "segment")
        except WorkerFailed as error:
            lost(name, error)
            return None

    measured = interleaved(list(about), rounds, measure, lambda text: say(f"{title}: {text}"))
    return Comparison(measured, about, failed)
