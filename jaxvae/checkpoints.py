"""Checkpoints on disk by orbax: saved whole, checked by digest, loadable in one call.

The only file that imports orbax. A checkpoint is a step's folder with named items, each a pytree
of arrays without a device axis, and `about`, a JSON object that says what they are.

Several processes all hold the same state: process 0 alone writes and reads files, and sends what
it has read to the others, so that they need no folder in common. All of them must call the same
methods in the same order.
"""

import hashlib
import math
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxvae.processes import arrays_from_first, from_first, is_first, together
from jaxvae.recipes import build
from jaxvae.vae import VAE, Params

FORMAT = 1
"""Version of what a checkpoint holds; raised when an older reader could not read it."""


class Checkpoints:
    """The checkpoints of one run: the two latest and the best by a metric.

    Args:
        directory: made when it is not there.

    Saves run in the background; `close` waits for them.
    """

    def __init__(self, directory: Path) -> None:
        self._background = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None
        with together():
            if is_first():
                self._manager = _manager(Path(directory).resolve())

    def latest_step(self) -> int | None:
        """The newest step that was saved whole, or None."""
        return from_first(lambda: self._settled().latest_step())

    def best_step(self) -> int | None:
        """The step of the highest metric; the latest where none has a metric; None if empty."""
        return from_first(lambda: self._settled().best_step())

    def save(
        self, step: int, items: dict[str, Any], about: dict[str, Any], metric: float | None
    ) -> None:
        """Save a step in the background; the arrays are copied before this returns.

        Args:
            step: not older than the latest; saving the latest again is no work.
            items: name -> pytree of arrays, on one device or whole on every device.
            about: JSON values; `format`, `digests` and `leaves` are added here.
            metric: what "best" compares, higher is better; None or NaN: not among the best.

        Raises:
            ValueError: the step is older than the latest.
        """
        if not is_first():
            return
        latest = self._settled().latest_step()
        if latest is not None and step < latest:
            raise ValueError(f"step {step} is not newer than the latest, {latest}.")
        if step != latest:
            items = jax.tree.map(np.array, jax.device_get(items))
            self._saving = self._background.submit(self._write, step, items, about, metric)

    def _settled(self) -> ocp.CheckpointManager:
        """orbax's manager, once it has taken over what is being saved; raises what went wrong."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()
        return self._manager

    def _write(
        self, step: int, items: dict[str, Any], about: dict[str, Any], metric: float | None
    ) -> None:
        about = about | {
            "format": FORMAT,
            "digests": {name: digest(tree) for name, tree in items.items()},
            "leaves": {name: _leaves(tree) for name, tree in items.items()},
        }
        rank = -math.inf if metric is None or math.isnan(metric) else float(metric)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                about=ocp.args.JsonSave(about),
                **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
            ),
            metrics={"metric": rank},
        )

    def about(self, step: int) -> dict[str, Any]:
        """What the checkpoint of this step says of itself."""
        return from_first(lambda: self._about(step))

    def restore(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
        """The named items of a step, as numpy arrays in the structure of the targets.

        Args:
            step: one that was saved.
            targets: name -> pytree of arrays or `jax.ShapeDtypeStruct`s.

        Raises:
            ValueError: an item has other leaves than its target, or its content does not have
                the digest it was saved with.
        """
        return arrays_from_first(lambda: self._restore(step, targets), targets)

    def wait(self) -> None:
        """Wait for the saves under way, and raise what went wrong in them."""
        with together():
            if is_first():
                self._settled().wait_until_finished()

    def close(self) -> None:
        """Wait for the saves under way and end the background threads."""
        if is_first():
            self._settled().close()
        self._background.shutdown()

    def _about(self, step: int) -> dict[str, Any]:
        arguments = ocp.args.Composite(about=ocp.args.JsonRestore())
        return self._settled().restore(step, args=arguments)["about"]

    def _restore(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
        about = self._about(step)
        for name, target in targets.items():
            self._check_leaves(step, name, about["leaves"].get(name, {}), _leaves(target))
        args = {
            name: ocp.args.StandardRestore(jax.tree.map(_empty, tree))
            for name, tree in targets.items()
        }
        restored = self._settled().restore(step, args=ocp.args.Composite(**args))
        for name in targets:
            if digest(restored[name]) != about["digests"][name]:
                raise ValueError(
                    f"checkpoint {step} is damaged: {name!r} does not have the digest it was "
                    f"saved with. Remove the folder {self._manager.directory / str(step)} to go "
                    "on from the checkpoint before it."
                )
        return {name: restored[name] for name in targets}

    @staticmethod
    def _check_leaves(step: int, name: str, saved: dict[str, str], asked: dict[str, str]) -> None:
        for path in sorted(saved.keys() | asked.keys()):
            there, here = saved.get(path, "absent"), asked.get(path, "absent")
            if there != here:
                raise ValueError(
                    f"checkpoint {step} holds another model or optimizer: {name}{path} is {there} "
                    f"there and {here} here. Build both as they were when it was saved."
                )


def _manager(directory: Path) -> ocp.CheckpointManager:
    """orbax's manager, of process 0 alone."""
    best = checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics["metric"], n=1)
    policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best])
    directory.mkdir(parents=True, exist_ok=True)
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=lambda metrics: metrics["metric"],
            best_mode="max",
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes={0}, barrier_sync_key_prefix="process_0"
            ),
        ),
    )


def digest(tree: Any) -> str:
    """SHA-256 over a tree's paths, types, shapes and bytes.

    >>> digest({"a": np.zeros(2)}) == digest({"a": np.zeros(3)})
    False
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        total.update(f"{name} {array.dtype} {np.shape(leaf)} ".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def load(run: str | Path, which: Literal["best", "latest"] = "best") -> tuple[VAE, Params]:
    """A trained VAE and its parameters, from a run's folder.

        vae, params = jaxvae.checkpoints.load("runs/mnist")

    Args:
        run: the run's folder, or its `checkpoints` folder.
        which: "best" by the validation bound, or "latest".

    Returns:
        The VAE, rebuilt by the function that the checkpoint names, and its parameters (their
        running average where the run kept one) as numpy arrays.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the checkpoint is damaged or newer than this release.
    """
    folder = Path(from_first(lambda: _checkpoints_folder(Path(run))))
    checkpoints = Checkpoints(folder)
    try:
        step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
        with together():
            if step is None:
                raise FileNotFoundError(f"{folder} holds no checkpoint yet.")
        about = checkpoints.about(step)
        with together():
            if about["format"] > FORMAT:
                raise ValueError(
                    f"checkpoint format {about['format']} is newer than this release reads "
                    f"({FORMAT}). Upgrade jaxvae."
                )
            vae = build(about["vae"])
        item = "average" if "average" in about["digests"] else "params"
        target = jax.eval_shape(vae.init, jax.random.key(0))
        return vae, checkpoints.restore(step, {item: target})[item]
    finally:
        checkpoints.close()


def _checkpoints_folder(run: Path) -> str:
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    if not folder.is_dir():
        raise FileNotFoundError(f"no run at {run}: give the folder that training wrote.")
    return str(folder)


def _leaves(tree: Any) -> dict[str, str]:
    """The type and shape of every leaf, by its path."""
    return {
        jax.tree_util.keystr(path): f"{np.dtype(leaf.dtype).name} {list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _empty(leaf: Any) -> np.ndarray:
    return np.empty(leaf.shape, leaf.dtype)
