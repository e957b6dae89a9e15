"""Commands name a missing package that they need, and work without those that they do not."""

import os
import subprocess
import sys

import pytest

from experiments.data import load
from experiments.flags.packages import OURS, install_line, require_packages
from tests.files import ROOT


def started_without(tmp_path, packages, *command):
    """Run a command in a process that cannot import some packages; return how it ended."""
    hidden = "import sys; sys.modules.update(dict.fromkeys({}))"
    (tmp_path / "sitecustomize.py").write_text(hidden.format(list(packages)))
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


NEEDED = [
    ("tyro", "experiments", ("experiments.train",)),
    ("tyro", "experiments", ("experiments.encode", "RUN")),
    ("tyro", "experiments", ("experiments.benchmark", "step")),
    ("matplotlib", "experiments", ("experiments.train",)),
    ("matplotlib", "experiments", ("experiments.benchmark", "step")),
    ("PIL", "experiments", ("experiments.train",)),
    ("PIL", "experiments", ("experiments.sample", "RUN")),
    ("tensorboardX", "tensorboard", ("experiments.train", "--tensorboard")),
]


@pytest.mark.parametrize(("package", "extra", "command"), NEEDED)
def test_a_command_names_the_missing_extra_before_it_starts(tmp_path, package, extra, command):
    where = {"RUN": str(tmp_path / "run"), "experiments.train": f"--run={tmp_path / 'run'}"}
    arguments = [where.get(word, word) for word in command[1:]]
    if command[0] in where:
        arguments.append(where[command[0]])
    result = started_without(tmp_path, [package], command[0], *arguments)
    assert result.stderr == (
        f"error: the package {package} is not installed. Run python -m pip install -e "
        f"'.[{extra}]'.\n"
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_library_needs_no_extra(tmp_path):
    """The package rich is not tested, since flax itself needs it."""
    optional = set(OURS) - {"jax", "flax", "optax", "orbax", "numpy", "rich"}
    hidden = [*optional, "chex", "scipy.stats", "sklearn", "numpyro", "experiments"]
    (tmp_path / "use.py").write_text(
        "import jax, jaxvae, jaxvae.checkpoints.checkpoints, jaxvae.testing\n"
        "vae = jaxvae.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(3,))\n"
        "print(vae.encode(vae.init(jax.random.key(0)), jax.numpy.ones(4)).mean().shape)\n"
    )
    result = started_without(tmp_path, hidden, "use")
    assert (result.stdout, result.returncode) == ("(2,)\n", 0), result.stderr


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("mnist", "tensorflow_datasets"),
        ("kmnist", "array_record"),
        ("tfds:mnist", "importlib_resources"),
        ("folder:images", "PIL"),
    ],
)
def test_a_data_set_names_the_missing_extra_before_it_is_fetched(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} is not installed.* '\.\[experiments\]'"):
        load(name)
    assert len(load("mnist_small").test) == 2000


def test_installed_packages_raise_no_error():
    require_packages("json", "numpy")


def test_a_missing_package_of_the_user_is_named():
    error = ModuleNotFoundError("No module named 'mine'", name="mine.nets")
    assert install_line(error) == "No module named 'mine'. Install it."
