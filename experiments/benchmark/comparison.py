"""One comparison: its variants prepared, measured in rounds, and what each said of itself."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.benchmark.rounds import Rounds, interleaved
from experiments.benchmark.workers import Variant, WorkerFailed, Workers


class Comparison(NamedTuple):
    """What came of the variants.

    Attributes:
        rounds: what each measured, in the order of the variants.
        about: what each said when it was ready.
        failed: those that could not be measured, and why, in one line.
    """

    rounds: Rounds
    about: dict[str, dict[str, Any]]
    failed: dict[str, str]

    def setting(self, name: str) -> str:
        """The setting that a variant had in most rounds, or said that it has; "" where it has none.

        Which of its settings is the fastest may differ from round to round.
        """
        seen = [round_["setting"] for round_ in self.rounds[name] if "setting" in round_]
        if not seen:
            return self.about[name].get("setting", "")
        (most, count), *_ = Counter(seen).most_common(1)
        return most if count == len(seen) else f"{most} ({count} of {len(seen)} rounds)"

    def to_json(self) -> dict[str, Any]:
        """As JSON's types."""
        variants = {
            name: {"about": self.about[name], "rounds": rounds}
            for name, rounds in self.rounds.items()
        }
        return {"variants": variants, "failed": self.failed}


def say(text: str) -> None:
    """Show what is going on; the tables alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def compare(workers: Workers, variants: Sequence[Variant], rounds: int, title: str) -> Comparison:
    """Prepare the variants one after the other, then measure them in rounds.

    Args:
        workers: that hold them; they stay.
        variants: to be compared.
        rounds: how many.
        title: of the comparison, for what is shown meanwhile.
    """
    about: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}

    def lost(name: str, error: WorkerFailed) -> None:
        failed[name] = str(error)
        say(f"{title}: left out: {error}")

    for variant in variants:
        say(f"{title}: preparing {variant.name}")
        try:
            about[variant.name] = workers.prepare(variant)
        except WorkerFailed as error:
            lost(variant.name, error)

    def measure(name: str) -> dict[str, Any] | None:
        try:
            return workers.ask(name, "segment")
        except WorkerFailed as error:
            lost(name, error)
            return None

    measured = interleaved(list(about), rounds, measure, lambda text: say(f"{title}: {text}"))
    return Comparison(measured, about, failed)
