"""Checkpoints on disk by orbax: saved whole, checked by digest, loadable in one call.

A checkpoint is a step's folder with named items, each a pytree of arrays without a device axis, and
`about`, a JSON object that says what they are.

Several processes all hold the same state: process 0 alone writes and reads files, and sends what
it has read to the others, so that they need no folder in common. All of them must call the same
methods in the same order.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxvae.checkpoints.hosts import arrays_from_first, from_first, is_first, raise_on_all_processes
from jaxvae.checkpoints.manifest import MAY_PASS, Damaged, SaveFailed, Unusable, remedy
from jaxvae.checkpoints.orbax_manager import (
    OrbaxFolder,
    clear_the_way,
    none_whole,
    remove_unfinished,
    set_aside,
)
from jaxvae.checkpoints.rebuilding import checkpoints_folder, rebuild
from jaxvae.checkpoints.saved_items import (
    check_readable,
    copied,
    described,
    read_about,
    read_items,
)
from jaxvae.models.registry import MODELS
from jaxvae.models.vae import VAE, Params


class Restored(NamedTuple):
    """The newest checkpoint that is whole.

    Attributes:
        step: of it.
        items: as `Checkpoints.restore` returns them.
        set_aside: a line for each newer one, which was damaged and is in another folder now.
    """

    step: int
    items: dict[str, Any]
    set_aside: list[str]


class Checkpoints:
    """The checkpoints of one run: the two latest and the best by a metric.

    Args:
        directory: made when it is not there; of no other process that saves. What a save that was
            cut short has left there is removed.
        read_only: leave all in it as it is, what another process is saving there above all.

    Saves run in the background; `close` waits for them. One that fails, on a full disk say, leaves
    the checkpoints before it as they were. The first one is read back, there and then: training
    goes on only into a folder whose checkpoints can be read.
    """

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self._directory = Path(directory).resolve()
        self._background = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None
        self._read_only, self._read_back = read_only, False
        with raise_on_all_processes():
            if is_first():
                self._aside = clear_the_way(self._directory, read_only)
                self._folder = OrbaxFolder(self._directory)

    def steps(self) -> list[int]:
        """All that are saved, rising."""
        return from_first(lambda: sorted(self._settled().manager.all_steps()))

    def latest_step(self) -> int | None:
        """The newest step that was saved whole, or None."""
        return from_first(lambda: self._settled().manager.latest_step())

    def best_step(self) -> int | None:
        """The step of the highest metric; the latest where none has a metric; None if empty."""
        return from_first(lambda: self._settled().manager.best_step())

    def save(
        self, step: int, items: dict[str, Any], about: dict[str, Any], metric: float | None
    ) -> SaveFailed | None:
        """Save a step in the background; the arrays are copied before this returns.

        Args:
            step: not older than the latest; saving the latest again is no work.
            items: name -> pytree of arrays, on one device or whole on every device.
            about: JSON values; `format`, `digests` and `leaves` are added here.
            metric: what "best" compares, higher is better; None or NaN: not among the best.

        Returns:
            What went wrong with the save before this one, which is under way in any case.

        Raises:
            ValueError: the step is older than the latest, or no checkpoint can hold the items.
            Unusable: the first checkpoint that was saved here cannot be read back, or could not be
                saved for a reason that does not pass.
        """
        if not is_first():
            return None
        if self._read_only:
            raise ValueError(f"{self._directory} was opened with read_only=True. Open it without.")
        problem = None
        try:
            self._settled()
        except SaveFailed as error:
            problem = error
        latest = self._folder.manager.latest_step()
        if latest is not None and step < latest:
            raise ValueError(f"step {step} is not newer than the latest, {latest}.")
        if step != latest:
            self._saving = self._background.submit(self._write, step, copied(items), about, metric)
        return problem

    def _settled(self) -> OrbaxFolder:
        """The folder, once nothing is being saved.

        Raises:
            SaveFailed: the last save; the folder knows nothing of it any more.
            Unusable: as `save`.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            try:
                saving.result()
            except Unusable:
                raise
            except Exception as error:
                reason = self._folder.reason(error)
                with contextlib.suppress(Exception):
                    self._folder.close()
                remove_unfinished(self._directory)
                self._folder = OrbaxFolder(self._directory)
                failed = f"a checkpoint could not be saved in {self._directory}: {reason}."
                if self._read_back or reason in MAY_PASS:
                    raise SaveFailed(failed) from error
                raise Unusable(f"{failed} {remedy(error) or 'Choose another folder'}.") from error
        return self._folder

    def _write(
        self, step: int, items: dict[str, Any], about: dict[str, Any], metric: float | None
    ) -> None:
        about = described(items, about)
        rank = -math.inf if metric is None or math.isnan(metric) else float(metric)
        self._folder.manager.save(
            step,
            args=ocp.args.Composite(
                about=ocp.args.JsonSave(about),
                **{name: ocp.args.PyTreeSave(tree) for name, tree in items.items()},
            ),
            metrics={"metric": rank},
        )
        self._folder.manager.wait_until_finished()
        if not self._read_back:
            targets = jax.tree.map(_shape, items)
            items.clear()  # what is read takes the memory of what was written
            check_readable(self._folder, step, targets)
            self._read_back = True

    def about(self, step: int) -> dict[str, Any]:
        """What the checkpoint of this step says of itself.

        Raises:
            ValueError: it is damaged, or of a newer format than this release reads.
        """
        return from_first(lambda: read_about(self._settled(), step))

    def restore(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
        """The named items of a step, as numpy arrays in the structure of the targets.

        Args:
            step: one that was saved.
            targets: name -> pytree of arrays or `jax.ShapeDtypeStruct`s.

        Raises:
            ValueError: an item has other leaves than its target, or the format is newer than this
                release reads.
            Damaged: a file is missing or cannot be read, or an item's content does not have the
                digest it was saved with. With several processes a ValueError.
        """
        return arrays_from_first(lambda: read_items(self._settled(), step, targets), targets)

    def restore_newest(self, targets: dict[str, Any]) -> Restored | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        Newer ones, damaged, are moved to a folder beside this one, and never deleted.

        Args:
            targets: as `restore` takes them.

        Raises:
            ValueError: an item has other leaves than its target; or the format is newer than this
                release reads; or all checkpoints are damaged. All lie where they lay.
        """
        held: dict[str, Any] = {}

        def find() -> tuple[int | None, list[str]]:
            damaged = {aside.step: aside.error for aside in self._aside.values()}
            try:
                step = self._newest_whole(targets, held, damaged)
            except ValueError:
                for aside in self._aside.values():
                    aside.folder.rename(self._directory / str(aside.step))
                raise
            moved, self._aside = self._aside, {}
            for newer in damaged.keys() - moved.keys():
                moved[newer] = set_aside(self._directory, newer, damaged[newer])
            self._folder.manager.reload()
            return step, [str(moved[newer]) for newer in sorted(moved, reverse=True)]

        step, lines = from_first(find)
        if step is None:
            return None
        return Restored(step, arrays_from_first(lambda: held, targets), lines)

    def _newest_whole(
        self, targets: dict[str, Any], held: dict[str, Any], damaged: dict[int, Damaged]
    ) -> int | None:
        """Its step, its items in `held`; those found to be damaged on the way are in `damaged`."""
        folder = self._settled()
        for step in sorted(folder.manager.all_steps(), reverse=True):
            try:
                held.update(read_items(folder, step, targets))
            except Damaged as error:
                damaged[step] = error
            else:
                return step
        if damaged:
            raise none_whole(self._directory, damaged)
        return None

    def wait(self) -> None:
        """Wait for the save under way.

        Raises:
            SaveFailed, Unusable: it, as from `save`. With several processes a ValueError.
        """
        with raise_on_all_processes():
            if is_first():
                self._settled()

    def close(self) -> None:
        """Wait for the save under way, whether it fails or not, and end the background thread."""
        if is_first():
            with contextlib.suppress(SaveFailed, Unusable):
                self._settled()
            self._folder.close()
        self._background.shutdown()


def load(
    run: str | Path,
    which: Literal["best", "latest"] = "best",
    models: Mapping[str, Callable[..., VAE]] = MODELS,
) -> tuple[VAE, Params]:
    """Load a trained VAE and its parameters from a run's folder.

        vae, params = jaxvae.checkpoints.load("runs/mnist")
        vae, params = jaxvae.checkpoints.load("runs/own", models={"my.models:make": make})

    The folder may come from anybody: nothing in it is imported, evaluated or unpickled.

    Args:
        run: the run's folder, or its `checkpoints` folder.
        which: "best" by the validation bound, or "latest".
        models: functions outside `jaxvae.models.registry.MODELS` that may build the model, each
            under the name that the checkpoint has for it: the --model of the training.

    Returns:
        The VAE, rebuilt by the function that the checkpoint names and made `jaxvae.trainable`, and
        its parameters (their running average where the run kept one) as numpy arrays.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the checkpoint is damaged or newer than this release, or names a function that
            is in neither `MODELS` nor `models`.
    """
    folder = Path(from_first(lambda: checkpoints_folder(Path(run))))
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
        with raise_on_all_processes():
            if step is None:
                raise FileNotFoundError(f"{folder} holds no checkpoint yet.")
        about = checkpoints.about(step)
        vae, target = rebuild(about, folder / str(step), models)
        (params,) = checkpoints.restore(step, target).values()
        return vae, params
    finally:
        checkpoints.close()


def _shape(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
