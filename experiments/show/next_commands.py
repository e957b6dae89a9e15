"""Commands that a user may type next, with the path of a run and the flags that it needs."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def next_commands(
    run: Path,
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str]]:
    """List (purpose, command) of what can be done with a trained run.

    Args:
        run: folder of the run.
        config: its flags, from config.json.
        results: its results; empty if it has none yet.
        rows: rows of its metrics.
    """
    where, model = shlex.quote(str(run)), config.get("model")
    own = f" --model={shlex.quote(model)}" if isinstance(model, str) and ":" in model else ""
    last = max((row["step"] for row in rows), default=0)
    commands = [
        ("Tighter estimate of log p(x)", f"evaluate {where} --num-samples=5000{own}"),
        ("More samples, reconstructions and traversals", f"sample {where} --seed=1{own}"),
        ("Unusual rows of your data, as a table", f"score {where} --dataset=npz:PATH{own}"),
        ("Latent codes of a split, as arrays", f"encode {where} --split=test{own}"),
    ]
    if results:
        commands += _longer(where, config, results.get("steps", last), own)
    else:
        commands = [("Continue training", f"train --run={where}{own}")]
    skipped = [row["step"] for row in rows if row["split"] == "skipped"]
    if skipped:
        what = f"Find the cause of the first of {len(skipped)} skipped steps"
        commands.append((what, f"replay {where} {skipped[0]}{own}"))
    return [(purpose, f"python -m experiments.{command}") for purpose, command in commands]


def _longer(
    where: str, config: Mapping[str, Any], steps: Any, own: str
) -> Iterator[tuple[str, str]]:
    """Command that doubles the number of steps; a schedule that falls to 0 gets a new end."""
    if type(steps) is int and steps > 0:
        falls = config.get("schedule", "constant") != "constant"
        end = f" --decay-steps={2 * steps}" if falls else ""
        yield "Train twice as long", f"train --run={where} --num-steps={2 * steps}{end}{own}"
