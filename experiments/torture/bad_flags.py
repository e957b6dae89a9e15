"""Flags with wrong types or ranges, that exclude each other, or that request missing devices."""

import dataclasses
import importlib
import random
import typing
from collections.abc import Callable
from typing import Any, Literal

from experiments.torture.case import COMMANDS, RUN, Case, Fixture

NO_INT = ("x", "", "1.5", "1e3", "nan", "0x10", "1,000", "[1]", "true", "--", "1 2", "²")
NO_FLOAT = ("x", "", "1,5", "1.0.0", "--", "one", "1e", "0x1p3", "True", "½")
HUGE_INT = ("2147483648", "10" * 8, "9" * 30, "-" + "9" * 30)
NO_ROOM = ("2147483647",)
LARGE = {("train", flag) for flag in ("latent-dim", "hidden", "num-components")}
"""Flags for which NO_ROOM exceeds the memory of any machine."""
HUGE_FLOAT = ("nan", "inf", "-inf", "1e39", "-1e39", "1e308", "1e999")
POSITIONAL = {"train": (), "evaluate": (RUN,), "sample": (RUN,), "encode": (RUN,),
              "replay": (RUN, "3")}  # fmt: skip
BELOW_ONE = ("0", "-1", "-1000000")
BELOW_ZERO = ("-1", "-0.5", "-1e9")
NOT_BELOW_ZERO = ("-1", "-7", "-2147483648")
OUT_OF_RANGE: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        **dict.fromkeys(
            ("latent-dim", "hidden", "num-samples", "batch-size", "num-steps", "accumulate-steps",
             "max-skipped", "eval-every", "log-every", "eval-samples", "eval-batch-size",
             "num-groups", "num-intervals", "num-components", "virtual-shards", "num-devices",
             "decay-steps", "rows-at-once", "start-timeout-seconds", "lost-timeout-seconds"),
            BELOW_ONE,
        ),
        **dict.fromkeys(
            ("weight-decay", "beta", "free-bits", "capacity", "regularizer-weight"), BELOW_ZERO
        ),
        **dict.fromkeys(
            ("seed", "beta-warmup-steps", "warmup-steps", "capacity-steps", "num-validation"),
            NOT_BELOW_ZERO,
        ),
        **dict.fromkeys(("learning-rate", "gradient-clip", "num-epochs"), (*BELOW_ZERO, "0")),
        "num-categories": ("1", *BELOW_ONE),
        "average-decay": ("0", "1", "1.5", *BELOW_ZERO),
        "elbo-weight": ("1.01", *BELOW_ZERO),
    },
    "evaluate": {"num-samples": BELOW_ONE, "batch-size": BELOW_ONE, "seed": NOT_BELOW_ZERO,
                 "num-devices": BELOW_ONE, "lost-timeout-seconds": BELOW_ONE},
    "sample": {"num-samples": BELOW_ONE, "num-examples": ("1", *BELOW_ONE),
               "num-steps": ("1", *BELOW_ONE), "seed": NOT_BELOW_ZERO},
    "encode": {"batch-size": BELOW_ONE, "seed": NOT_BELOW_ZERO, "num-devices": BELOW_ONE},
    "replay": {},
}  # fmt: skip
"""Command -> flag -> values out of the flag's range."""


def flags_of(command: str) -> dict[str, tuple[str, Any]]:
    """Map each flag of a command, except positional ones, to its name in Python and its type."""
    module = importlib.import_module(f"experiments.{command}")
    return {
        name.replace("_", "-"): (name, hint)
        for name, hint in _hints(getattr(module, f"{command.capitalize()}Config")).items()
        if not (name in ("run", "step") and command != "train")
    }


def _hints(flags: type) -> dict[str, Any]:
    hints = typing.get_type_hints(flags)
    nested = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    plain = {name: hint for name, hint in hints.items() if name not in nested}
    for hint in nested.values():
        plain |= _hints(typing.cast(type, hint))
    return plain


def kinds(hint: Any) -> set[Any]:
    """Return the members of a union type, with "literal" for any Literal."""
    if typing.get_origin(hint) is Literal:
        return {"literal"}
    return {kind for part in typing.get_args(hint) for kind in kinds(part)} or {hint}


def wrong_type(rng: random.Random, fixture: Fixture) -> Case:
    """Give a value of a wrong type, an unknown flag, or one value too few or too many."""
    command = rng.choice(COMMANDS)
    positional = POSITIONAL[command]
    flags = flags_of(command)
    flag = rng.choice(list(flags))
    types = kinds(flags[flag][1]) - {type(None)}
    wrong: tuple[str, ...]
    if flag == "resize":
        wrong = (f"--{flag}", *rng.choice((("8",), ("8", "x"), ("8", "8", "8"), ("8x8",))))
    elif types == {int} and flag != "hidden":
        wrong = (f"--{flag}={rng.choice(NO_INT)}",)
    elif types in ({float}, {float, "literal"}):
        wrong = (f"--{flag}={rng.choice(NO_FLOAT)}",)
    elif types == {"literal"}:
        wrong = (f"--{flag}={rng.choice(('', 'x', 'ELBO', 'Cpu', 'none ', 'te st', '0'))}",)
    elif types == {bool}:
        wrong = (f"--{flag}={rng.choice(('maybe', 'True', '2', ''))}",)
    elif flag == "hidden":
        wrong = (f"--{flag}", rng.choice(NO_INT[:10]))
    else:
        wrong = rng.choice(((f"--{flag}",), (f"--{flag}x=1",), (f"-{flag[0]}", "1"), ("a b", "c")))
    return Case(command, (*positional, *wrong), (f"--{flag}", *wrong))


def out_of_range(rng: random.Random, fixture: Fixture) -> Case:
    """Give a number of the right type that is out of its flag's range."""
    command = rng.choice([name for name in COMMANDS for _ in range(6 if name == "train" else 1)])
    if command == "replay":
        return Case(command, (RUN, rng.choice((*HUGE_INT[:3], "0"))), ("--step",))
    flags, ranges = flags_of(command), OUT_OF_RANGE[command]
    numbers = [flag for flag, (_, hint) in flags.items() if kinds(hint) & {int, float}]
    flag = rng.choice([*numbers, *ranges])
    if flag == "resize":
        size = rng.choice(("0 8", "8 -1", "16385 1", "1 2147483648")).split()
        return Case(command, ("--resize", *size, "--dataset=folder:pictures"), ("--resize",))
    types = kinds(flags[flag][1]) if flag in flags else {int}
    values = ranges.get(flag, ()) + (NO_ROOM if (command, flag) in LARGE else ())
    values += HUGE_FLOAT if float in types else HUGE_INT
    arguments = (*POSITIONAL[command], *_needed(flag), f"--{flag}", rng.choice(values))
    if command == "train":
        noise = [other for other in _noise(rng) if not other.startswith(f"--{flag}")]
        arguments += (f"--dataset={fixture.data}", *noise)
    return Case(command, arguments, (f"--{flag}", flag.replace("-", "_")))


def _needed(flag: str) -> tuple[str, ...]:
    """Return the flags without which this flag would be rejected for another reason."""
    known = {
        "sigma": ("--likelihood=gaussian",),
        "sigma-rate": ("--likelihood=gaussian",),
        "alpha": ("--objective=renyi",),
        "elbo-weight": ("--objective=ciwae",),
        "num-intervals": ("--objective=tvo",),
        "num-groups": ("--objective=miwae",),
        "num-components": ("--prior=mixture",),
        "num-categories": ("--posterior=relaxed_categorical",),
        "weight-decay": ("--optimizer=adamw",),
        "regularizer-weight": ("--regularizer=mmd",),
        "capacity-steps": ("--capacity=1",),
        "virtual-shards": ("--deterministic-reduction",),
    }
    distributed = ("--distributed", "--coordinator=h:1", "--num-processes=2", "--process-id=0")
    own = ("start-timeout-seconds", "lost-timeout-seconds")
    return distributed if flag in own else known.get(flag, ())


def _noise(rng: random.Random) -> tuple[str, ...]:
    """Draw some flags that are valid with any others."""
    right: tuple[Callable[[], str], ...] = (
        lambda: f"--max-skipped={rng.randint(1, 99)}",
        lambda: f"--learning-rate={rng.uniform(1e-5, 1)}",
        lambda: f"--log-every={rng.randint(1, 99)}",
        lambda: f"--eval-batch-size={rng.randint(1, 99)}",
        lambda: f"--schedule={rng.choice(('constant', 'cosine', 'linear'))}",
        lambda: f"--gradient-clip={rng.uniform(0.1, 9)}",
        lambda: f"--precision={rng.choice(('float32', 'bfloat16'))}",
        lambda: rng.choice(("--quiet", "--no-quiet")),
        lambda: rng.choice(("--no-data-mean-init", "--data-mean-init")),
        lambda: "--average-decay=None",
    )
    chosen = rng.sample(right, rng.randint(0, 4))
    return tuple(make() for make in chosen)


TOGETHER: tuple[tuple[str, str], ...] = (
    ("--objective=iwae --beta=2", "--beta"),
    ("--objective=tvo --beta-warmup-steps=9", "--beta-warmup-steps"),
    ("--objective=renyi --free-bits=1", "--free-bits"),
    ("--objective=miwae --capacity=1", "--capacity"),
    ("--num-groups=2", "--num-groups"),
    ("--elbo-weight=0.1", "--elbo-weight"),
    ("--objective=elbo --alpha=0.1", "--alpha"),
    ("--objective=iwae --num-intervals=7", "--num-intervals"),
    ("--num-components=7", "--num-components"),
    ("--num-categories=7", "--num-categories"),
    ("--sigma=0.1", "--sigma"),
    ("--likelihood=poisson --sigma=optimal", "--sigma"),
    ("--sigma-rate=3", "--sigma-rate"),
    ("--likelihood=gaussian --optimizer=sgd --sigma-rate=3", "--sigma-rate"),
    ("--standardize=columns", "--standardize"),
    ("--likelihood=laplace --sigma=optimal", "sigma"),
    ("--weight-decay=0.1 --optimizer=sgd", "--weight-decay"),
    ("--estimator=score", "--estimator=score"),
    ("--model=conv --activation=tanh", "--activation"),
    ("--model=conv --initialization=torch", "--initialization"),
    ("--capacity-steps=3", "--capacity-steps"),
    ("--beta-schedule=cosine", "--beta-schedule"),
    ("--regularizer-weight=3", "--regularizer-weight"),
    ("--deterministic-reduction --regularizer=mmd", "--regularizer"),
    ("--deterministic-reduction --rows-at-once=9", "--rows-at-once"),
    ("--deterministic-reduction --batch-size=12", "--batch-size"),
    ("--deterministic-reduction --virtual-shards=3 --batch-size=16", "--batch-size"),
    ("--virtual-shards=4", "--virtual-shards"),
    ("--estimator=dreg", "estimator"),
    ("--objective=iwae --num-samples=3 --estimator=stl", "estimator"),
    ("--estimator=vimco --posterior=categorical", "num_samples"),
    ("--objective=piwae --num-samples=4 --num-groups=2 --estimator=vimco", "estimator"),
    ("--posterior=categorical", "estimator"),
    ("--posterior=categorical --prior=mixture --estimator=vimco --num-samples=2", "prior"),
    ("--posterior=von_mises_fisher --prior=flow", "prior"),
    ("--posterior=von_mises_fisher --latent-dim=1", "latent_dim"),
    ("--objective=miwae --num-samples=4 --num-groups=3", "num_groups"),
    ("--regularizer=mmd --batch-size=1", "mmd"),
    ("--regularizer=total_correlation --batch-size=1", "total correlation"),
    ("--regularizer=total_correlation --batch-size=9999", "batch size"),
    (
        "--regularizer=dip_i --posterior=categorical --estimator=vimco --num-samples=2",
        "regularizer",
    ),
    ("--regularizer=mmd --posterior=categorical --estimator=vimco --num-samples=2", "regularizer"),
    ("--regularizer=dip_ii --posterior=iaf", "dip"),
    ("--grey-probabilities --binarize=dynamic", "grey"),
    ("--grey-probabilities --binarize=static", "grey"),
    ("--binarize=none", "--binarize"),
    ("--binarize=dynamic --likelihood=gaussian", "--binarize"),
    ("--grey-probabilities --likelihood=poisson", "--grey-probabilities"),
    ("--manual-dir=somewhere", "--manual-dir"),
    ("--num-validation=264000", "--num-validation"),
    ("--hidden 4 0 4", "hidden"),
    ("--hidden -3", "hidden"),
    ("--compilation-cache=file/in/it", "--compilation-cache"),
    ("--compilation-cache=file", "--compilation-cache"),
    ("--coordinator=h:1 --num-processes=2 --process-id=0", "--distributed"),
    ("--distributed --num-processes=2", "--coordinator"),
    ("--distributed --coordinator=h --num-processes=2 --process-id=0", "--coordinator"),
    ("--distributed --coordinator=h:99999 --num-processes=2 --process-id=0", "--coordinator"),
    ("--distributed --coordinator=h:0 --num-processes=2 --process-id=0", "--coordinator"),
    ("--distributed --coordinator=h:1 --num-processes=2 --process-id=2", "--process-id"),
    ("--distributed --coordinator=h:1 --num-processes=2 --process-id=-1", "--process-id"),
    ("--process-id=0", "--distributed"),
)
"""Flags that exclude each other or lack another one, and a word that the error must have."""

MODELS = (
    "", "MLP", "mlp:", ":f", ":", "nowhere:f", "os:nothing", "os:name", "math:sqrt", "os.path:join",
    ".x:f", "..:f", "../evil:f", "a/b:f", "a\\b:f", "a b:f", "experiments.config:TrainConfig",
    "json:dumps", "jaxvae.vae:Start", "broken:f", "raising:f", "none:f", "greedy:f", "picky:f",
    "x" * 300 + ":f", "a:b:c", "é:f", "builtins:print",
)  # fmt: skip
"""Invalid values of --model; some name modules in the case's folder (`SOURCES`)."""
SOURCES = {
    "broken": "def f(:\n",
    "raising": "raise RuntimeError('at import')\n",
    "none": "def f():\n    return None\n",
    "greedy": "def f(data_shape, more):\n    return None\n",
    "picky": "def f(data_shape):\n    raise KeyError('no')\n",
}


def not_together(rng: random.Random, fixture: Fixture) -> Case:
    """Give flags that exclude each other, or an invalid model, among valid flags."""
    (fixture.folder / "file").write_text("a file")
    if rng.random() < 0.2:
        return _no_model(rng, fixture)
    line, name = rng.choice(TOGETHER)
    given = tuple(line.split())
    small = ("--hidden", "4", "--batch-size=8", "--latent-dim=2", "--num-devices=1")
    flags = (f"--dataset={fixture.data}", *small)
    return Case("train", (*flags, *_noise(rng), *given), (name,))


def _no_model(rng: random.Random, fixture: Fixture) -> Case:
    for name, source in SOURCES.items():
        (fixture.folder / f"{name}.py").write_text(source)
    model = rng.choice(MODELS)
    arguments = (f"--model={model}", f"--dataset={fixture.data}")
    return Case("train", arguments, ("--model", "--run"))


def absent_devices(rng: random.Random, fixture: Fixture) -> Case:
    """Request a missing accelerator, too many devices, or a batch that they cannot share."""
    command = rng.choice(("train", "evaluate", "encode"))
    start = (f"--dataset={fixture.data}", "--hidden", "4") if command == "train" else (RUN,)
    several = ("--distributed", "--coordinator=127.0.0.1:1", "--num-processes=2", "--process-id=0")
    choices: list[tuple[tuple[str, ...], str, dict[str, str]]] = [
        ((f"--accelerator={kind}", *more), f"--accelerator={kind}", {})
        for kind in fixture.absent
        for more in ((), ("--num-devices=2",), ("--seed=3",))
    ]
    choices += [((f"--num-devices={count}",), "--num-devices", {})
                for count in (1025, 4096, 100_000, 2**31 - 1)]  # fmt: skip
    if fixture.separate:
        choices += [((f"--accelerator={kind}",), "JAX_PLATFORMS", {"JAX_PLATFORMS": platform})
                    for kind in ("auto", *fixture.absent)
                    for platform in ("nothing", "cpu,nothing", "rocm")]  # fmt: skip
    if command == "train":
        choices += [((f"--num-devices={count}", f"--batch-size={size}"), "-", {})
                    for count, size in ((2, 7), (4, 30), (8, 4), (3, 128))]  # fmt: skip
        choices += [((*several[:2], *several[3:]), "--num-processes", {}),
                    ((*several[1:],), "--distributed", {})]  # fmt: skip
    flags, name, environment = rng.choice(choices)
    names = ("batch_size", "--num-devices") if name == "-" else (name,)
    return Case(command, (*start, *flags), names, environment)
