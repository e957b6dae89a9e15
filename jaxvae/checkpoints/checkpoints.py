"""Checkpoints on disk by orbax: saved whole, checked by digest, loadable in one call.

A checkpoint is a step's folder with named items, each a pytree of arrays without a device axis, and
`about`, a JSON object that describes them.

With several processes, all hold the same state. Only process 0 writes and reads files; it sends
their contents to the others, so that they need no shared folder. All processes must call the same
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
    """The newest undamaged checkpoint.

    Attributes:
        step: step of the checkpoint.
        items: as returned by `Checkpoints.restore`.
        set_aside: a line for each newer checkpoint, which was damaged and was moved away.
    """

    step: int
    items: dict[str, Any]
    set_aside: list[str]


class Checkpoints:
    """The checkpoints of one run: the two latest and the best by a metric.

    Args:
        directory: created if it is missing. No other process may save in it. The remains of
            interrupted saves are removed.
        read_only: change nothing in the folder, in which another process may be saving.

    Saves run in the background; `close` waits for them. A save that fails, for example on a full
    disk, leaves the earlier checkpoints as they were. The first checkpoint is read back at once:
    training continues only into a folder whose checkpoints can be read.
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
        """Steps of all saved checkpoints, ascending."""
        return from_first(lambda: sorted(self._settled().manager.all_steps()))

    def latest_step(self) -> int | None:
        """Newest step that was saved completely, or None."""
        return from_first(lambda: self._settled().manager.latest_step())

    def best_step(self) -> int | None:
        """Step of the highest metric, or the latest if there is no metric; None if empty."""
        return from_first(lambda: self._settled().manager.best_step())

    def save(
        self, step: int, items: dict[str, Any], about: dict[str, Any], metric: float | None
    ) -> SaveFailed | None:
        """Save a step in the background; the arrays are copied before this returns.

        Args:
            step: not older than the latest; saving the latest again does nothing.
            items: name -> pytree of arrays, on one device or whole on every device.
            about: JSON values; `format`, `digests` and `leaves` are added here.
            metric: value that "best" compares, higher is better; None or NaN: never the best.

        Returns:
            The error of the previous save, or None. This save is under way in either case.

        Raises:
            ValueError: the step is older than the latest, or no checkpoint can hold the items.
            Unusable: the first checkpoint that was saved here cannot be read back, or could not be
                saved for a permanent reason.
        """
        if not is_first():
            return None
        if self._read_only:
            raise ValueError(
                f"{self._directory} was opened with read_only=True. Open it without to save."
            )
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
        """Wait for the save under way, and return the folder.

        Raises:
            SaveFailed: that save failed; its remains have been removed.
            Unusable: as in `save`.
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
            items.clear()  # frees the copies, whose memory the arrays read back can use
            check_readable(self._folder, step, targets)
            self._read_back = True

    def about(self, step: int) -> dict[str, Any]:
        """Description `about` of the checkpoint of this step.

        Raises:
            ValueError: the checkpoint is damaged, or newer than the formats this release reads.
        """
        return from_first(lambda: read_about(self._settled(), step))

    def restore(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
        """Read the named items of a step as numpy arrays in the structure of the targets.

        Args:
            step: a saved step.
            targets: name -> pytree of arrays or `jax.ShapeDtypeStruct`s.

        Raises:
            ValueError: the leaves of an item differ from its target, or the format is newer than
                this release reads.
            Damaged: a file is missing or cannot be read, or an item's content does not match its
                digest. With several processes, a ValueError.
        """
        return arrays_from_first(lambda: read_items(self._settled(), step, targets), targets)

    def restore_newest(self, targets: dict[str, Any]) -> Restored | None:
        """Restore the newest undamaged checkpoint; return None if the folder has no checkpoint.

        Damaged newer checkpoints are moved to a folder beside this one, and never deleted.

        Args:
            targets: as in `restore`.

        Raises:
            ValueError: the leaves of an item differ from its target; or the format is newer than
                this release reads; or all checkpoints are damaged. Then no checkpoint is moved.
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
        """Step of the newest undamaged checkpoint; fill `held` with its items.

        Add the damaged checkpoints that are newer to `damaged`.
        """
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
            SaveFailed, Unusable: the save failed, as in `save`. With several processes, a
                ValueError.
        """
        with raise_on_all_processes():
            if is_first():
                self._settled()

    def close(self) -> None:
        """Wait for the save under way, ignoring its errors, and end the background thread."""
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

    The folder may come from anybody: nothing in it is ever imported, evaluated or unpickled.

    Args:
        run: the run's folder, or its `checkpoints` folder.
        which: "best" by the validation bound, or "latest".
        models: functions outside `jaxvae.models.registry.MODELS` that may build the model, each
            under the name that the checkpoint uses: the --model flag of the training.

    Returns:
        The VAE, rebuilt by the function that the checkpoint names and made `jaxvae.trainable`, and
        its parameters (their running average if the run has one) as numpy arrays.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the checkpoint is damaged or newer than this release, or names a function that
            is in neither `MODELS` nor `models`.
    """
    loaded = load_described(run, which, models)
    return loaded.vae, loaded.params


class Loaded(NamedTuple):
    """A model, its parameters on the host, and the step and description of their checkpoint."""

    vae: VAE
    params: Params
    step: int
    about: dict[str, Any]


def load_described(
    run: str | Path, which: Literal["best", "latest"], models: Mapping[str, Callable[..., VAE]]
) -> Loaded:
    """Load a trained VAE as `load`, with the description in its checkpoint."""
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
        return Loaded(vae, params, step, about)
    finally:
        checkpoints.close()


def _shape(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
