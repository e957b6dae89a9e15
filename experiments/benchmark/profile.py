"""Profile of a training step: a trace of the device, its time summed by part of the code."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.benchmark.library_steps import CHUNK_STEPS, chunk_step_and_arguments
from experiments.benchmark.setting import make_setting

PARTS = {
    "matrix products": r"/(dot|conv)_general",
    "random numbers, keys, data": r"threefry|row_keys|/prepare/|/draws/",
    "optimizer": r"/update/",
    "running average": r"/average/",
    "activations, bound and their gradient": r"jvp\(",
}
"""Part -> pattern of an operation's name in the source; the first match decides."""
REST = "gradient norm, metrics, copies"
CALLS = 5
"""Dispatches that are traced, after as many untraced ones."""


def part_of(source: str) -> str:
    """Return the part that an operation belongs to.

    >>> part_of("jit(train_step)/transpose(jvp(vmap(MLPDecoder)))/Dense_1/dot_general")
    'matrix products'
    >>> part_of("jit(train_step)/cond/branch_1_fun/update/mul")
    'optimizer'
    """
    return next((part for part, known in PARTS.items() if re.search(known, source)), REST)


def sources(program: str) -> dict[str, str]:
    """Map each operation to its name in the source, from the text of a compiled program.

    >>> sources('  %dot.1 = f32[2]{0} dot(%a, %b), metadata={op_name="jit(f)/dot_general" id=1}')
    {'dot.1': 'jit(f)/dot_general'}
    """
    return dict(
        re.findall(r'^\s*(?:ROOT )?%([\w.-]+) = .*op_name="([^"]*)"', program, re.MULTILINE)
    )


class Profile:
    """Milliseconds of the command's step by part, summed over operations that run in parallel.

    Args:
        net: a key of `NETS`.
        where: arguments of `make_setting`.
    """

    def __init__(self, net: str, **where: Any) -> None:
        chunk_step, (state, *others) = chunk_step_and_arguments(make_setting(net, **where))
        program = chunk_step.lower(state, *others).compile()
        for _ in range(CALLS):
            state, _ = program(state, *others)
        jax.block_until_ready(state)
        with tempfile.TemporaryDirectory(prefix="jaxvae-profile-") as folder:
            with jax.profiler.trace(folder):
                for _ in range(CALLS):
                    state, _ = program(state, *others)
                jax.block_until_ready(state)
            (path,) = Path(folder).rglob("*.xplane.pb")
            events = list(_events(path))
        known = sources(program.as_text())
        total: dict[str, float] = defaultdict(float)
        for name, nanoseconds in events:
            if name in known:
                total[part_of(known[name])] += nanoseconds
        steps = CALLS * CHUNK_STEPS
        longest_first = sorted(total.items(), key=lambda item: -item[1])
        self.about = {"parts": {part: value / 1e6 / steps for part, value in longest_first}}


def _events(path: Path) -> Iterator[tuple[str, float]]:
    """Yield name and duration, in nanoseconds, of every event in a trace."""
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                yield event.name, event.duration_ns
