"""One-line errors for the user's own code and for arguments that are no distributions."""

import dataclasses
import importlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae
from experiments.flags import command, own_code
from experiments.flags.command import UserError
from experiments.flags.config import TrainConfig
from experiments.flags.continuing import flags_of_run
from experiments.record.progress import without_announcements
from experiments.train import train
from jaxvae import Bernoulli, Gaussian
from jaxvae.testing import check_bound

MODEL = """
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxvae import VAE, Bernoulli, Gaussian

class Posterior(eqx.Module):
    loc: jax.Array
    def sample(self, key):
        {sample}
        return self.loc + jax.random.normal(key, (2,))
    def log_prob(self, z):
        {log_prob}
        return -jnp.sum((z - self.loc) ** 2)
    def mean(self):
        {mean}
        return self.loc

class Likelihood(eqx.Module):
    logits: jax.Array
    def log_prob(self, x):
        return Bernoulli(self.logits).log_prob(x)
    def mean(self):
        {picture}
        return jax.nn.sigmoid(self.logits)

def make(data_shape):
    {make}
    def init(key):
        {init}
        return {{"w": jax.random.normal(key, (64, 2)), "v": jnp.ones((2, 64))}}
    def encode(params, x):
        {encode}
        return Posterior(x.ravel() @ params["w"])
    def decode(params, z):
        {decode}
        return Likelihood((z @ params["v"]).reshape(data_shape))
    def prior(params):
        {prior}
        return Gaussian.standard(2)
    return VAE(init, encode, decode, prior)
"""
PLACES = ["make", "init", "encode", "decode", "prior", "sample", "log_prob", "mean", "picture"]


def _write(folder, monkeypatch, **lines):
    """Write a module `mine` to the current folder, with given lines at given places."""
    source = MODEL.format(**(dict.fromkeys(PLACES, "pass") | lines))
    (folder / "mine.py").write_text(source)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    importlib.invalidate_caches()
    return source


def _main(monkeypatch, capsys, module, *arguments):
    """Run a command in this process; return its exit code and error lines."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    commands = importlib.import_module(f"experiments.{module}")
    flags = getattr(commands, f"{module.capitalize()}Config")
    default = [commands.flags_of_run] if module == "train" else []
    with pytest.raises(SystemExit) as end:
        command.main(flags, getattr(commands, module), *default)
    return end.value.code, without_announcements(capsys.readouterr().err)


def _line_of(source, text):
    return next(i for i, line in enumerate(source.splitlines(), 1) if text in line)


def _flags(data, run, *more):
    return (
        "train", f"--dataset={data}", f"--run={run}", "--model=mine:make", "--batch-size=20",
        "--num-steps=5", "--num-devices=1", "--quiet", *more,
    )  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_an_error_in_own_code_names_file_line_and_function(
    place, data, tmp_path, monkeypatch, capsys
):
    source = _write(tmp_path, monkeypatch, **{place: '{}["absent"]'})
    code, errors = _main(monkeypatch, capsys, *_flags(data, tmp_path / "run"))
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: --model=mine:make")
    line = _line_of(source, '{}["absent"]')
    function = "mean" if place == "picture" else place
    assert f"{tmp_path / 'mine.py'}, line {line}, in {function}" in errors
    assert "KeyError: 'absent'" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "mistake",
    [
        'raise NotImplementedError("later")',
        "assert x is None",
        "x @ jnp.ones(3)",
        "return jnp.where(x > 0, 1, 0) if x.sum() > 0 else None",
        "undefined",
        "eqx.nn.Linear(3, 4, key=jax.random.key(0))(x.ravel())",
    ],
)
def test_any_kind_of_error_names_the_innermost_line_of_own_code(
    mistake, data, tmp_path, monkeypatch, capsys
):
    source = _write(tmp_path, monkeypatch, encode=mistake)
    code, errors = _main(monkeypatch, capsys, *_flags(data, tmp_path / "run"))
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert len(errors) < 1000
    assert f"mine.py, line {_line_of(source, mistake)}, in encode, gave: " in errors


def test_the_named_line_is_where_own_code_failed_not_where_it_was_called(
    data, tmp_path, monkeypatch, capsys
):
    calls = "return (lambda: helper(x))()"
    source = _write(tmp_path, monkeypatch, encode=calls)
    source += "\ndef helper(x):\n    return jnp.ones(3) @ x\n"
    (tmp_path / "mine.py").write_text(source)
    code, errors = _main(monkeypatch, capsys, *_flags(data, tmp_path / "run"))
    assert code == 2
    assert f"mine.py, line {_line_of(source, 'jnp.ones(3) @ x')}, in helper, gave: " in errors


def test_traceback_flag_shows_every_frame_and_the_line_last(data, tmp_path, monkeypatch, capsys):
    _write(tmp_path, monkeypatch, encode='{}["absent"]')
    flags = _flags(data, tmp_path / "run", "--traceback")
    code, errors = _main(monkeypatch, capsys, *flags)
    assert code == 2
    assert "Traceback (most recent call last)" in errors
    assert "own_model.py" in errors
    assert errors.splitlines()[-1].startswith("error: --model=mine:make: your code at ")


@pytest.mark.parametrize("module", ["train", "evaluate", "sample", "encode", "replay"])
def test_every_command_has_the_traceback_flag(module, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a folder")
    where = str(tmp_path / "file" / "run")
    arguments = {"train": [f"--run={where}"], "replay": [where, "3"]}.get(module, [where])
    code, plain = _main(monkeypatch, capsys, module, *arguments)
    assert code == 2
    assert "Traceback" not in plain
    code, whole = _main(monkeypatch, capsys, module, *arguments, "--traceback")
    assert code == 2
    assert "Traceback (most recent call last)" in whole
    assert whole.splitlines()[-1] == plain.splitlines()[-1]


def test_help_names_the_traceback_flag(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit):
        command.main(TrainConfig, train, flags_of_run)
    assert "--traceback: show where an error comes from" in capsys.readouterr().out


def _caught(file):
    """Return an error raised in code of the given file, as caught by its caller."""
    names: dict = {}
    exec(compile("def f(): return {}['absent']", str(file), "exec"), names)
    try:
        names["f"]()
    except KeyError as error:
        return error.with_traceback(error.__traceback__.tb_next)


def test_errors_of_the_project_and_of_packages_are_not_own_code(tmp_path):
    for file in (command.__file__, jaxvae.__file__, jax.__file__, importlib.__file__, "<string>"):
        assert own_code.described(_caught(file)) is None
    line = own_code.described(_caught(tmp_path / "nets.py"))
    assert line.startswith(f"your code at {tmp_path / 'nets.py'}, line 1, in f, gave: KeyError: ")


def test_an_error_caused_by_own_code_keeps_its_text():
    error = ValueError("--model must be another.")
    error.__cause__ = _caught("nets.py")
    line = own_code.described(error)
    assert line.startswith("--model must be another. It comes from your code at nets.py, line 1,")


def test_an_installed_package_is_own_code_if_model_names_it(tmp_path):
    caught = _caught(tmp_path / "site-packages" / "nets" / "vae.py")
    assert own_code.described(caught) is None
    assert own_code.described(caught, "other.nets:make") is None
    assert "vae.py, line 1, in f," in own_code.described(caught, "nets.vae:make")


class Distrax:
    """Object with the signatures of distrax, where the key is keyword-only."""

    def __init__(self, loc):
        self.loc = loc

    def sample(self, *, seed, sample_shape=()):
        return self.loc + jax.random.normal(seed, (*sample_shape, *self.loc.shape))

    def log_prob(self, value):
        return -0.5 * jnp.sum(jnp.square(value - self.loc) + jnp.log(2 * jnp.pi))


class TFP(Distrax):
    """Object with the signature of TFP, whose first argument is a shape."""

    def sample(self, sample_shape=(), seed=None, name="sample"):
        return super().sample(seed=seed, sample_shape=sample_shape)


class NoSample:
    def log_prob(self, value):
        return jnp.zeros(())


class Returns:
    """Likelihood whose log_prob is the value that it was constructed with."""

    def __init__(self, value):
        self.value = value

    def log_prob(self, x):
        return self.value


Q, X = Gaussian.standard(2), jnp.ones(3)
RIGHT = {"encode": lambda x: Q, "decode": lambda z: Bernoulli(jnp.zeros(3)), "prior": Q}
MISTAKES = {
    "distrax": (
        {"encode": lambda x: Distrax(jnp.zeros(2))},
        r"encode\(x\) must have sample\(key\); got an object of type Distrax, which has "
        r"sample\(\*, seed, sample_shape=\(\)\). .*pass jaxvae.adapt",
    ),
    "tfp": (
        {"encode": lambda x: TFP(jnp.zeros(2))},
        r"encode\(x\) must have sample\(key\); got .* TFP, .*jaxvae.adapt",
    ),
    "no sample": ({"encode": lambda x: NoSample()}, r"which has no sample.*jaxvae.adapt"),
    "array": (
        {"decode": lambda z: jnp.zeros(3)},
        r"decode\(z\) must be a distribution, with log_prob\(value\); got an array float32\[3\]. "
        r"Return an object such as .*jaxvae.Bernoulli\(logits\)",
    ),
    "tuple": ({"encode": lambda x: (x, x)}, r"encode\(x\) must be .*; got a tuple of 2. Return"),
    "none": ({"decode": lambda z: None}, r"decode\(z\) must be .*; got None. Return one"),
    "class": ({"prior": Gaussian}, r"prior must be .*; got the class Gaussian. Make an instance"),
    "function": ({"prior": lambda params: Q}, r"prior must be .*; got the function .*Call it"),
    "text": ({"prior": "standard"}, r"prior must be .*; got an object of type str. Pass"),
    "instance": ({"encode": Q}, r"encode must be a function, got an object of type Gaussian"),
    "no value": (
        {"decode": lambda z: Returns(None)},
        r"decode\(z\).log_prob\(x\) must be a scalar array, got None",
    ),
}
BOUNDS = {
    "elbo": jaxvae.elbo,
    "iwae": lambda *a, **k: jaxvae.iwae(*a, num_samples=2, **k),
    "miwae": lambda *a, **k: jaxvae.miwae(*a, num_samples=2, num_groups=1, **k),
    "piwae": lambda *a, **k: jaxvae.piwae(*a, num_samples=2, num_groups=1, **k),
    "ciwae": lambda *a, **k: jaxvae.ciwae(*a, num_samples=2, **k),
    "renyi": lambda *a, **k: jaxvae.renyi(*a, num_samples=2, alpha=0.5, **k),
    "tvo": lambda *a, **k: jaxvae.tvo(*a, num_samples=2, num_intervals=2, **k),
    "log_likelihood": lambda *a, **k: jaxvae.log_likelihood(*a, num_samples=2, **k),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("bound", BOUNDS)
def test_every_bound_names_an_argument_that_is_no_distribution(bound, mistake):
    change, line = MISTAKES[mistake]
    trace = lambda key: BOUNDS[bound](key, X, **(RIGHT | change))
    with pytest.raises(TypeError, match=line):
        jax.eval_shape(trace, jax.random.key(0))


@pytest.mark.parametrize("bound", BOUNDS)
def test_every_bound_rejects_a_log_prob_per_entry(bound):
    parts = RIGHT | {"decode": lambda z: Returns(jnp.zeros(3))}
    with pytest.raises(ValueError, match=r"must be a scalar, .*it has shape \(3,\)"):
        jax.eval_shape(lambda key: BOUNDS[bound](key, X, **parts), jax.random.key(0))


@pytest.mark.parametrize("kind", [Distrax, TFP])
def test_adapt_makes_distributions_of_other_libraries_usable(kind):
    adapted = RIGHT | {"encode": lambda x: jaxvae.adapt(kind(jnp.zeros(2)))}
    plain = RIGHT | {"encode": lambda x: Gaussian(jnp.zeros(2), jnp.zeros(2))}
    key = jax.random.key(0)
    found, expected = (jaxvae.elbo(key, X, kl="sampled", **parts) for parts in (adapted, plain))
    np.testing.assert_allclose(found.elbo, expected.elbo, rtol=1e-5, atol=1e-6)


def test_kl_and_mmd_name_an_argument_that_is_no_distribution():
    with pytest.raises(TypeError, match=r"q must have sample\(key\); got .* Distrax"):
        jaxvae.kl(Distrax(jnp.zeros(2)), Q, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"p must be a distribution.*got an array"):
        jaxvae.kl(Q, jnp.zeros(2), key=jax.random.key(0))
    penalty = jaxvae.mmd(1.0).penalty
    with pytest.raises(TypeError, match=r"prior must have sample\(key\); got .* NoSample"):
        penalty((), jax.random.key(0), Q, jnp.zeros((3, 2)), NoSample())


def test_check_bound_names_an_argument_that_is_no_bound():
    sizes = {"sizes": [(2, 1)], "num_keys": 2}
    with pytest.raises(TypeError, match="bound must be a function, got an object of type Gaussian"):
        check_bound(Q, **sizes)
    nothing = lambda key, x, *, encode, decode, prior, num_samples: None
    with pytest.raises(TypeError, match="the objective must be a scalar array, got None"):
        check_bound(nothing, **sizes)


def test_train_step_names_an_output_that_is_no_distribution():
    vae = jaxvae.VAE(
        init=lambda key: {"w": jnp.ones(3)},
        encode=lambda params, x: Q,
        decode=lambda params, z: params["w"],
        prior=lambda params: Q,
    )
    optimizer = optax.sgd(0.1)
    state = jaxvae.init_state(vae, optimizer, jax.random.key(0))
    step = jaxvae.make_train_step(vae, optimizer)
    with pytest.raises(TypeError, match=r"decode\(z\) must be a distribution.* float32\[3\]"):
        step(state, jax.random.split(jax.random.key(1), 2), jnp.ones((2, 3)))


def test_an_equinox_posterior_is_accepted_as_a_distribution():
    class Normal(eqx.Module):
        loc: jax.Array

        def sample(self, key):
            return self.loc + jax.random.normal(key, self.loc.shape)

        def log_prob(self, value):
            return -0.5 * jnp.sum(jnp.square(value - self.loc) + jnp.log(2 * jnp.pi))

    parts = RIGHT | {"encode": lambda x: Normal(jnp.zeros(2))}
    assert np.isfinite(jaxvae.elbo(jax.random.key(0), X, **parts).elbo)


def test_train_called_from_python_raises_one_line_too(small, tmp_path, monkeypatch):
    _write(tmp_path, monkeypatch, decode="return z")
    own = {"model": "mine:make", "hidden": None, "latent_dim": TrainConfig.latent_dim}
    config = dataclasses.replace(small, run=tmp_path / "run", **own)
    with pytest.raises(UserError, match=r"decode\(z\) must be a distribution.*float32\[2\]"):
        train(config)
