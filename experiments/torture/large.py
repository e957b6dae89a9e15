"""Large cases: a checkpoint of 500 MB, and data larger than a run's memory."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.machine.keys import root_key
from experiments.torture.victim import FLAGS, ROOT, Outcome

HIDDEN = (4096, 3072)
"""Hidden units; parameters, average and Adam's two moments take 500 MB."""
MOST_SECONDS, MOST_SECONDS_BLOCKED = 30.0, 1.0
MOST_COPIES = 3
"""Most memory as a multiple of the state: the state itself, and twice its size to save it."""
MEMORY = 3 * 2**30
"""Most bytes of private memory of a run (RLIMIT_DATA; pages of mapped files do not count)."""
EXAMPLES = 5_500_000
"""Training examples of 784 bytes each; their total exceeds MEMORY."""


def large_checkpoint(folder: Path, tries: int) -> Outcome:
    """Save and restore a checkpoint of 500 MB, with limits on time and memory."""
    survived, note = 0, ""
    for i in range(tries):
        saved, restored = (_child(f"{name}(sys.argv[1])", folder / str(i))
                           for name in ("save", "restore"))  # fmt: skip
        size = saved["bytes"]
        copies = max(saved["peak"], restored["peak"]) / size
        survived += (
            saved["blocked"] < MOST_SECONDS_BLOCKED
            and max(saved["seconds"], restored["seconds"]) < MOST_SECONDS
            and copies <= MOST_COPIES
        )
        note = (
            f"{size / 1e6:.0f} MB: saved in {saved['seconds']:.1f} s, of which training waits "
            f"{saved['blocked']:.2f} s; restored in {restored['seconds']:.1f} s; at most "
            f"{copies:.1f} times its size in memory"
        )
    return Outcome(tries, survived, note)


def larger_than_memory(folder: Path, tries: int) -> Outcome:
    """Train from disk on data that exceed the memory of the run."""
    data = folder / "data"
    data.mkdir()
    digits = (np.random.default_rng(0).random((1000, 784)) < 0.1).astype(np.uint8)
    for name, count in {"train": EXAMPLES, "validation": 1000, "test": 1000}.items():
        array = np.lib.format.open_memmap(
            data / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(count, 784)
        )
        array[:1000] = digits  # the rest of the file is sparse and takes no space on the disk
        array.flush()
    survived, note = 0, ""
    for i in range(tries):
        code = f"from {__name__} import limited; limited()"
        flags = [f"--run={folder / str(i)}", f"--dataset=npy:{data}", *FLAGS, "--num-steps=2000"]
        child = subprocess.run(
            [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True
        )
        survived += child.returncode == 0
        note = (child.stderr.strip().splitlines() or [""])[-1] if child.returncode else (
            f"{EXAMPLES * 784 / 1e9:.1f} GB of data, {MEMORY / 1e9:.1f} GB of memory"
        )  # fmt: skip
    return Outcome(tries, survived, note)


def limited() -> None:
    """Run the training command with limited private memory."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    from experiments.flags import command
    from experiments.flags.config import TrainConfig
    from experiments.train import train

    command.main(TrainConfig, train)


def save(run: str) -> None:
    """Save a state once; print its size, the times and the peak memory as JSON."""
    from experiments.record.recorder import Recorder
    from experiments.run.saving import Saving
    from jaxvae.checkpoints import Checkpoints

    folder = Path(run)
    folder.mkdir()
    state, size = _state()
    checkpoints = Checkpoints(folder / "checkpoints")
    saving = Saving(checkpoints, Recorder(folder, -1))
    small = {"x": np.zeros(1)}  # saved first, so that orbax's one-time imports are not measured
    saving.save(state._replace(params=small, opt_state=small, average=small), {"step": 0}, None)
    saving.finish(0)
    before = _resident()
    started = time.perf_counter()
    saving.save(state, {"step": 1}, metric=None)
    blocked = time.perf_counter() - started
    saving.finish(1)
    seconds = time.perf_counter() - started
    peak = size + _status("VmHWM") - before
    print(json.dumps({"bytes": size, "blocked": blocked, "seconds": seconds, "peak": peak}))


def restore(run: str) -> None:
    """Restore the state to the device; print the time and the peak memory as JSON."""
    import jax

    from jaxvae.checkpoints import Checkpoints
    from jaxvae.training.state import from_items, to_items

    checkpoints = Checkpoints(Path(run) / "checkpoints")
    target = jax.eval_shape(_make_state)
    before, started = _resident(), time.perf_counter()
    newest = checkpoints.restore_newest(to_items(target))
    assert newest is not None
    jax.block_until_ready(jax.device_put(from_items(newest.items)))
    print(json.dumps({"seconds": time.perf_counter() - started, "peak": _status("VmHWM") - before}))


def _make_state() -> Any:
    import optax

    import jaxvae

    vae = jaxvae.mlp_vae(data_shape=(784,), latent_dim=32, hidden=HIDDEN)
    return jaxvae.init_state(vae, optax.adam(1e-3), root_key(0), averaging=True)


def _state() -> tuple[Any, int]:
    import jax

    state = jax.block_until_ready(jax.jit(_make_state)())
    return state, sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _resident() -> int:
    """Return the resident bytes of this process, and reset their peak."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """Return a size that Linux reports for this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def _child(call: str, folder: Path) -> dict[str, Any]:
    code = f"import sys; from {__name__} import *; {call}"
    child = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    if child.returncode:
        raise RuntimeError((child.stderr.strip().splitlines() or [""])[-1])
    values: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return values
