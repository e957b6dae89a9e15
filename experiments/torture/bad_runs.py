"""Run folders that were edited by hand, are damaged, have other flags, or hold no run."""

import dataclasses
import json
import os
import random
import shutil
import typing
from collections.abc import Callable
from typing import Any

from experiments.flags.config import TrainConfig
from experiments.torture.bad_flags import OUT_OF_RANGE, kinds
from experiments.torture.case import COMMANDS, RUN, Case, Fixture

OTHERS = COMMANDS[1:]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 3.5, float("nan"), float("inf"), 10**30, "", "x", "3", "cpu", "\0",
    [], [1], ["x"], [None], [[1]], {}, {"a": 1}, [1.5], "\ud800", "../..", 2**40,
)  # fmt: skip
FOREIGN = (
    b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"\0" * 50, b"{'a': 1}", b'{"seed": 1',
    b'{"seed": }', b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b'{"seed": ' + b"9" * 5000 + b"}",
    b'[["seed", 1]]', b'{"seed": 0}{"seed": 0}', b"true", b'{"\xff": 1}', b"<xml/>",
)  # fmt: skip
"""Contents that are not a JSON object, or that JSON readers fail on."""


def edited_config(rng: random.Random, fixture: Fixture) -> Case:
    """Edit config.json: a wrong type, a value out of range, an unknown name, or a truncation."""
    path = fixture.lay_run() / "config.json"
    kind = rng.randrange(6)
    if kind == 0:
        whole = path.read_bytes()
        path.write_bytes(rng.choice((*FOREIGN, *[whole[: rng.randrange(len(whole) - 2)]] * 9)))
        return _on_a_run(rng, fixture, "config.json")
    values = json.loads(path.read_text())
    if kind == 1:
        names = (
            "sede",
            "",
            "run ",
            "Seed",
            "processes",
            "__class__",
            "é",
            "x" * 500,
            "\n",
            "folder",
        )
        name = rng.choice(names)
        values[name] = rng.choice(VALUES)
    elif kind == 2:
        flag, bad = rng.choice(list(_ranges().items()))
        name = flag.replace("-", "_")
        values[name] = json.loads(rng.choice([*bad, "NaN", "Infinity"]))
    else:
        name, value = _wrong_value(rng)
        values[name] = value
    path.write_text(json.dumps(values))
    return _on_a_run(rng, fixture, "config.json", name, name.replace("_", "-"))


def _ranges() -> dict[str, tuple[str, ...]]:
    """Invalid values of flags that config.json has and that need no other flag."""
    alone = {"learning-rate", "seed", "batch-size", "latent-dim", "num-steps", "average-decay",
             "gradient-clip", "eval-every", "num-devices", "warmup-steps"}  # fmt: skip
    return {flag: bad for flag, bad in OUT_OF_RANGE["train"].items() if flag in alone}


def _wrong_value(rng: random.Random) -> tuple[str, Any]:
    """Draw a name in config.json, and a value of a wrong type for it."""
    hints = typing.get_type_hints(TrainConfig)
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name != "processes"]
    while True:
        name, value = rng.choice(names), rng.choice(VALUES)
        types = kinds(hints[name]) if name != "hidden" else {type(None)}
        right = type(value) in types or (type(value) is int and float in types)
        if name == "run":
            right = isinstance(value, str) or value is None
        if name == "hidden":
            right = value in (None, [], [1])
        if name == "accelerator" and value == "cpu":
            right = True
        if not right:
            return name, value


def _on_a_run(rng: random.Random, fixture: Fixture, *names: str) -> Case:
    """Run any command on the run in the case's folder."""
    command = rng.choice(COMMANDS)
    if command == "train":
        return Case("train", (*fixture.flags, f"--run={RUN}"), names)
    more = (str(rng.randint(1, fixture.step)),) if command == "replay" else ()
    return Case(command, (RUN, *more), names)


def edited_metrics(rng: random.Random, fixture: Fixture) -> Case:
    """Edit metrics.jsonl to have an invalid row, or replay a step that it does not have."""
    path = fixture.lay_run() / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    kind = rng.randrange(4)
    if kind == 0:
        return _torn(rng, fixture)
    at = rng.randrange(len(lines) - 1)
    row = json.loads(lines[at])
    if kind == 1:
        lines[at] = (
            rng.choice((*FOREIGN, lines[at][: rng.randrange(1, len(lines[at]) - 2)])) + b"\n"
        )
        if not lines[at].strip():
            lines[at] = b"x\n"
    elif kind == 2:
        row["step"] = rng.choice([v for v in VALUES if type(v) is not int or v < 0])
        lines[at] = json.dumps(row).encode() + b"\n"
    else:
        at = next(i for i, line in enumerate(lines) if b'"validation"' in line)
        row = json.loads(lines[at])
        changes: tuple[Callable[[], object], ...] = (
            lambda: row.pop(rng.choice(("step", "split"))),
            lambda: row.update(elbo=rng.choice(("x", [], {}, True, "-100"))),
            lambda: row.update(split=rng.choice((None, 3, [], {}, True))),
        )
        rng.choice(changes)()
        lines[at] = json.dumps(row).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    command = rng.choice(("train", "replay"))
    if command == "train":
        return Case("train", (*fixture.flags, f"--run={RUN}"), ("metrics.jsonl",))
    return Case("replay", (RUN, str(rng.randint(1, fixture.step))), ("metrics.jsonl",))


def _torn(rng: random.Random, fixture: Fixture) -> Case:
    """Truncate the last line, which is valid; the requested step does not exist."""
    path = fixture.folder / RUN / "metrics.jsonl"
    whole = path.read_bytes()
    last = len(whole.rstrip(b"\n").splitlines()[-1])
    path.write_bytes(whole[: len(whole) - rng.randrange(last)])
    step = rng.choice((fixture.step + 1, 0, -1, 10**9, fixture.step + rng.randint(1, 999)))
    return Case("replay", (RUN, str(step)), ("--step",))


def no_run(rng: random.Random, fixture: Fixture) -> Case:
    """Make a folder without a run, a run with a missing part, or an output that is not writable."""
    return rng.choice((_named, _named, _parts, _parts, _other_flags, _outputs))(rng, fixture)


def _named(rng: random.Random, fixture: Fixture) -> Case:
    """Name a folder that is not a run."""
    (fixture.folder / "file").write_text("a file")
    (fixture.folder / "loop").symlink_to("loop")
    (fixture.folder / "empty").mkdir()
    command = rng.choice(COMMANDS)
    if command == "train":
        name = rng.choice((
            "", ".", "..", "/", "./", "../", "empty/..", "../..", "//", "file", "file/run", "loop",
            "loop/run", "/dev/null", "/dev/null/run", "x" * 300, "x" * 300 + "/run",
            "a/" + "y" * 256, "/proc/run", "d/" * 3000 + "run", f"../{fixture.folder.name}/..",
        ))  # fmt: skip
        return Case("train", (f"--dataset={fixture.data}", f"--run={name}"), ("--run",))
    name = rng.choice((
        "nowhere", "", "empty", "file", "file/run", "loop", "..", "/", "/dev/null", "x" * 300,
        "a\nb", "empty/../empty", "../nowhere", "d/" * 3000 + "run", "é",
    ))  # fmt: skip
    return Case(
        command, (name, *(("1",) if command == "replay" else ())), ("run", name[:20] or "run")
    )


def _parts(rng: random.Random, fixture: Fixture) -> Case:
    """Remove a part of the run's folder, or replace it by something of another kind."""
    run = fixture.lay_run()
    part = rng.choice(("config.json", "metrics.jsonl", "checkpoints"))
    path = run / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    kind = rng.randrange(5)
    if kind == 1 and part != "checkpoints":
        path.mkdir()
    elif kind == 1:
        path.write_text("a file")
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        os.mkfifo(path)
    elif kind == 4 and part == "checkpoints":
        path.mkdir()
    command = rng.choice(OTHERS)
    if part == "metrics.jsonl":
        command = "replay"
    elif part == "checkpoints" and command == "replay":
        command = "evaluate"
    elif part == "config.json" or kind in (1, 2, 3):
        command = rng.choice((command, "train"))
    if command == "train":
        return Case("train", (*fixture.flags, f"--run={RUN}"), (part,))
    more = ("3",) if command == "replay" else ()
    return Case(command, (RUN, *more), (part, "no run at", "checkpoint"))


def _other_flags(rng: random.Random, fixture: Fixture) -> Case:
    """Train in the folder of a run with other flags."""
    fixture.lay_run()
    other = rng.choice(("--latent-dim=3", "--seed=5", "--hidden 5", "--beta=2",
                        "--optimizer=sgd", "--learning-rate=0.5", "--batch-size=4",
                        "--dataset=mnist_small", "--likelihood=gaussian", "--no-data-mean-init",
                        "--log-every=3"))  # fmt: skip
    flag = other.split("=")[0].split()[0].replace("--no-", "--")
    return Case("train", (*fixture.flags, f"--run={RUN}", *other.split()), (flag,))


def _outputs(rng: random.Random, fixture: Fixture) -> Case:
    """Send results to a place that cannot be written."""
    run = fixture.lay_run()
    (fixture.folder / "file").write_text("a file")
    (fixture.folder / "folder.npz").mkdir()
    (fixture.folder / "loop").symlink_to("loop")
    command = rng.choice(("sample", "encode", "evaluate"))
    if command == "evaluate":
        (run / "evaluations").write_text("a file")
        return Case(command, (RUN,), ("evaluations",))
    places = ["file", "file/deeper", "loop", "/dev/null/x", "x" * 300]
    if command == "encode":
        places = ["folder.npz", "folder", ".", "file/x.npz", "loop", "x" * 300 + ".npz"]
        (fixture.folder / "folder").mkdir()
    return Case(command, (RUN, f"--output={rng.choice(places)}"), ("--output",))
