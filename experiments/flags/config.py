"""The flags of `experiments.train`: one frozen dataclass, checked before anything starts."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.flags.combinations import check_combinations
from experiments.flags.processes import ALONE, Processes

Accelerator = Literal["auto", "cpu", "gpu", "tpu"]
ObjectiveName = Literal["elbo", "iwae", "miwae", "piwae", "ciwae", "renyi", "tvo"]
EstimatorName = Literal["reparameterized", "stl", "dreg", "score", "vimco"]
PosteriorName = Literal[
    "gaussian", "full_covariance", "low_rank", "iaf", "coupling", "spline",
    "von_mises_fisher", "relaxed_categorical", "categorical",
]  # fmt: skip
LikelihoodName = Literal[
    "bernoulli", "continuous_bernoulli", "gaussian", "laplace",
    "discretized_logistic", "logistic_mixture", "categorical",
    "poisson", "negative_binomial", "zero_inflated_negative_binomial",
]  # fmt: skip
RegularizerName = Literal["none", "total_correlation", "dip_i", "dip_ii", "mmd", "density_ratio"]

LARGEST = 3.4e38
"""No float32 is larger."""
MAY_CHANGE = frozenset(
    {"run", "accelerator", "num_devices", "num_steps", "num_epochs", "eval_samples"}
    | {"manual_dir", "data_dir", "tensorboard", "quiet", "processes", "compilation_cache"}
    | {"decay_steps", "schedule_start", "allow_other_data"}
)
"""Flags that may differ when a run is continued: they do not change what is learned per step, or
they are given to change it from there on."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a variational auto-encoder, evaluate it, and write a report.

    The same command again continues the run; with more steps it goes on to them. Ctrl-C saves
    and stops. With no flags it trains on real digits in a minute or two, without a network.
    """

    run: Path | None = None
    """Folder of the run. Default: runs/DATASET-MODEL. Of a run that is there, flags that are not
    given are the run's own, but for those of the machine: --run=RUN alone continues it."""
    dataset: str = "mnist_small"
    """mnist_small (ships with the code), mnist, fashion_mnist, kmnist, tfds:NAME, npz:PATH,
    npy:PATH or folder:PATH (your own data; a folder of .npy files stays on disk)."""
    manual_dir: str | None = None
    """Folder with a data set's original files, where they cannot be downloaded."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps what it has prepared. Default: its own."""
    num_validation: int | None = None
    """Training examples kept apart as the validation split. Default: the data set's own."""
    allow_other_data: bool = False
    """Continue the run although its data have changed; from then on it is a run of the new data."""

    model: str = "mlp"
    """mlp, conv, or package.module:function, a function of yours that returns a jaxvae.VAE. Its
    parameters may be any pytree, such as an Equinox module: floating point arrays are trained."""
    latent_dim: int = 32
    """Number of latents."""
    hidden: tuple[int, ...] | None = None
    """mlp: widths of the encoder's layers (default 512 256); conv: channels of its levels
    (default: as many levels as the image needs). The decoder mirrors it."""
    posterior: PosteriorName = "gaussian"
    """q(z|x): gaussian (diagonal), full_covariance, low_rank; iaf, coupling, spline (flows);
    von_mises_fisher (sphere); relaxed_categorical; categorical (with --estimator=vimco)."""
    prior: Literal["standard", "mixture", "vamp", "flow"] = "standard"
    """p(z): standard has no parameters; mixture (of Gaussians), vamp (of posteriors) and flow are
    learned."""
    num_components: int = 50
    """Components of a mixture or vamp prior."""
    num_categories: int = 10
    """Categories of each latent of a categorical or relaxed_categorical posterior."""
    likelihood: LikelihoodName = "bernoulli"
    """p(x|z): bernoulli for binary pixels; gaussian, laplace for grey or real values;
    continuous_bernoulli for values in [0, 1]; discretized_logistic, logistic_mixture, categorical
    for 8-bit integers; poisson, negative_binomial, zero_inflated_negative_binomial for counts."""
    sigma: float | Literal["learned", "per_channel", "per_pixel", "optimal"] = "learned"
    """Scale of the gaussian or laplace likelihood: a number, learned (one, one per channel, or by
    the decoder for each pixel), or the batch's optimum."""
    standardize: Literal["auto", "columns", "none"] = "auto"
    """columns: the networks and a learned sigma see each column of vectors, or channel of images,
    less its mean over its standard deviation in the training split (gaussian, laplace). All
    results are in the data's unit. auto: columns, but none for 8-bit images."""
    binarize: Literal["auto", "dynamic", "static", "none"] = "auto"
    """Grey levels as probabilities of binary pixels: drawn anew each time (dynamic), drawn once
    (static), or not at all. auto: dynamic for bernoulli, none otherwise."""
    grey_probabilities: bool = False
    """Feed grey levels to the bernoulli likelihood as if they were binary, with
    --binarize=none: usual in examples, and no log-likelihood of anything."""
    initialization: Literal["lecun", "torch"] = "lecun"
    """Start of the mlp's weights: flax's default, or PyTorch's."""
    activation: Literal["relu", "tanh"] = "relu"
    """After each hidden layer of the mlp."""
    data_mean_init: bool = True
    """Start the decoder's output at the mean of the training data."""

    objective: ObjectiveName = "elbo"
    """The bound to maximise: elbo; iwae, miwae, piwae, ciwae (importance weighted); renyi; tvo
    (thermodynamic)."""
    estimator: EstimatorName = "reparameterized"
    """Of the gradient: reparameterized; stl (elbo) and dreg (the others) have less noise; vimco
    (with --num-samples of 2 or more) and score serve --posterior=categorical."""
    num_samples: int = 1
    """Posterior samples per example and step."""
    num_groups: int = 1
    """Groups of samples, each with a bound of its own (miwae, piwae)."""
    elbo_weight: float = 0.5
    """Weight of the ELBO against the IWAE (ciwae)."""
    alpha: float = 0.5
    """Order of the Renyi objective: 0 is iwae, 1 is elbo (renyi)."""
    num_intervals: int = 5
    """Intervals of the thermodynamic integral (tvo)."""
    beta: float = 1.0
    """Weight of the KL in the objective (elbo)."""
    beta_warmup_steps: int = 0
    """Steps over which beta rises from 0 (elbo)."""
    beta_schedule: Literal["linear", "cosine", "cyclical"] = "linear"
    """How it rises; cyclical: linearly, then constant as long, and so on from 0, four times."""
    free_bits: float | None = None
    """Nats below which a latent's KL is not reduced (elbo)."""
    capacity: float | None = None
    """Nats that the KL is drawn towards, with weight beta (elbo)."""
    capacity_steps: int = 0
    """Steps over which the capacity rises from 0."""
    regularizer: RegularizerName = "none"
    """Penalty on the whole batch: total_correlation (beta-TCVAE), dip_i, dip_ii (DIP-VAE), mmd
    (InfoVAE, WAE), density_ratio (FactorVAE, with a discriminator)."""
    regularizer_weight: float = 1.0
    """Its weight: beta - 1 of beta-TCVAE, lambda of DIP-VAE, lambda - beta of InfoVAE (lambda of
    WAE, with --beta=0), gamma of FactorVAE."""

    batch_size: int = 128
    """Examples per step over all devices."""
    num_steps: int = 5000
    """Training steps."""
    num_epochs: float | None = None
    """Passes over the training data, instead of --num-steps."""
    optimizer: Literal["adam", "adamw", "adamax", "sgd"] = "adam"
    """The optax optimizer."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    sigma_rate: float | None = None
    """Learning rate of --sigma=learned and per_channel over that of the networks, with every
    optimizer but sgd. Default: 10."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up: constant, or falling to 0 over --decay-steps."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    decay_steps: int | None = None
    """Step at which cosine and linear end. Default: the steps that the run was started with. Give
    it to continue a run past that step: the learning rate then falls to 0 there instead."""
    schedule_start: int | None = None
    """Step at which warm-up and schedule start anew, one that the run has come to; with
    --decay-steps, where they then end. Default: 0, or what the run was continued with."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices and kernels (adamw only)."""
    gradient_clip: float | None = None
    """Largest global norm of a gradient."""
    accumulate_steps: int = 1
    """Steps whose gradients are averaged into one update (micro-batches)."""
    average_decay: float | None = 0.998
    """Decay of the running average of the weights that evaluation uses; None: no average."""
    max_skipped: int = 20
    """Steps in a row with a NaN or infinity, each skipped, after which the run stops."""
    rows_at_once: int | None = None
    """Rows (examples times samples) of which a device computes the gradient at once; more go one
    block after another. Default: on a CPU, for its cache, 1,000 (conv: 64); elsewhere all."""
    deterministic_reduction: bool = False
    """Add up gradients in a fixed order, so that a run is the same bit for bit on every number of
    devices that divides --virtual-shards, on one kind of hardware and one release of jax. On a
    GPU, convolutions are the same bits each time with it alone."""
    virtual_shards: int = 8
    """Parts of the batch whose gradients are added up so; each device holds that many gradients."""
    seed: int = 0
    """Of initialisation, data order and sampling."""

    eval_every: int = 500
    """Steps between evaluations on the validation split, each followed by a checkpoint."""
    log_every: int = 20
    """Steps between rows of metrics.jsonl."""
    eval_samples: int = 100
    """Samples K of the final log-likelihood estimate."""
    eval_batch_size: int = 500
    """Examples per evaluation call over all devices."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What the networks compute in. Parameters, bounds and gradients are float32 in both, and
    float32 is all of float32 on every device."""
    accelerator: Accelerator = "auto"
    """Where to run. auto: what jax finds. Anything else is verified."""
    compilation_cache: str = "auto"
    """Folder of compiled programs, which make the next start quicker; none: compile each time.
    auto: jaxvae in the user's cache folder, or what JAX_COMPILATION_CACHE_DIR says."""
    num_devices: int | None = None
    """Devices to use, of each process. Default: all; on the CPU 1, more are simulated."""
    processes: Processes = ALONE
    """The others, where there are any."""
    tensorboard: bool = False
    """Write TensorBoard event files too."""
    quiet: bool = False
    """No progress on the screen."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        model = self.model.translate(str.maketrans("/\\:.", "----"))
        name = self.dataset.translate(str.maketrans("/\\:", "---")).strip("-.")
        return self.run or Path("runs") / f"{name}-{model}"

    def steps(self, num_train: int) -> int:
        """Steps that the flags ask for, given the size of the training split."""
        if self.num_epochs is None:
            return self.num_steps
        return math.ceil(self.num_epochs * num_train / self.batch_size)

    @property
    def learns_sigma(self) -> bool:
        """True where sigma is a parameter that --sigma-rate applies to."""
        family = self.likelihood in ("gaussian", "laplace")
        return family and self.sigma in ("learned", "per_channel") and self.optimizer != "sgd"

    def check(self) -> None:
        """Refuse values and combinations that mean nothing.

        Raises:
            ValueError: one line, naming the flag.
        """
        self.processes.check()
        at_least_one = (
            "latent_dim num_samples batch_size num_steps accumulate_steps max_skipped eval_every "
            "log_every eval_samples eval_batch_size num_groups num_intervals num_components "
            "virtual_shards"
        )
        for name in at_least_one.split():
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        at_least_zero = (
            "beta_warmup_steps warmup_steps weight_decay beta seed free_bits capacity "
            "capacity_steps regularizer_weight schedule_start"
        )
        for name in at_least_zero.split():
            value = getattr(self, name)
            require(value is None or 0 <= value < math.inf, name, value, "0 or more")
        require(self.num_categories >= 2, "num_categories", self.num_categories, "at least 2")
        require(math.isfinite(self.alpha), "alpha", self.alpha, "a number")
        require(0 <= self.elbo_weight <= 1, "elbo_weight", self.elbo_weight, "in [0, 1]")
        for name in (
            *("learning_rate", "gradient_clip", "num_epochs", "num_devices", "decay_steps"),
            *("rows_at_once", "sigma_rate"),
        ):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "positive")
        require_representable(self)
        last = None if self.run is None else self.run.name
        require(last not in ("", ".."), "run", self.run, "a folder of its own, with a name")
        if self.average_decay is not None:
            require(0 < self.average_decay < 1, "average_decay", self.average_decay, "in (0, 1)")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        check_combinations(self)
        if self.estimator == "score" and self.posterior != "categorical":
            raise ValueError(
                "--estimator=score goes with --posterior=categorical: where draws carry a gradient "
                "its noise drowns it. Use reparameterized, stl, dreg or vimco."
            )
        for name in ("initialization", "activation"):
            if getattr(self, name) != defaults[name] and self.model == "conv":
                raise ValueError(f"--{name}={getattr(self, name)} goes with --model=mlp.")
        if self.capacity_steps and self.capacity is None:
            raise ValueError("--capacity-steps goes with --capacity.")
        if self.beta_schedule != "linear" and not self.beta_warmup_steps:
            raise ValueError("--beta-schedule goes with --beta-warmup-steps.")
        start, end = self.schedule_start or 0, self.decay_steps
        ends_later = self.schedule == "constant" or end is None or end > start
        require(ends_later, "decay_steps", end, f"above --schedule-start={start}")
        if self.regularizer_weight != 1 and self.regularizer == "none":
            raise ValueError("--regularizer-weight goes with --regularizer.")
        if self.deterministic_reduction:
            self._check_deterministic_reduction()
        elif self.virtual_shards != defaults["virtual_shards"]:
            raise ValueError("--virtual-shards goes with --deterministic-reduction.")

    def _check_deterministic_reduction(self) -> None:
        if self.regularizer != "none":
            raise ValueError(
                "--deterministic-reduction takes the batch in parts, and "
                f"--regularizer={self.regularizer} needs it whole. Leave out one of them."
            )
        if self.rows_at_once is not None:
            raise ValueError("--rows-at-once goes without --deterministic-reduction.")
        require(
            self.batch_size % self.virtual_shards == 0,
            "batch_size",
            self.batch_size,
            f"a multiple of --virtual-shards={self.virtual_shards}",
        )


def require(holds: bool, name: str, value: object, what: str) -> None:
    """Refuse a flag's value unless it holds.

    Raises:
        ValueError: in one line that names the flag.
    """
    if not holds:
        raise ValueError(f"--{_flag(name)} must be {what}, got {value}.")


def require_representable(flags: Any) -> None:
    """Refuse numbers that 32 bits, which is what devices compute in, do not hold.

    Args:
        flags: a dataclass of flags.

    Raises:
        ValueError: in one line that names the flag.
    """
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int):
                require(abs(number) < 2**31, field.name, number, "below 2,147,483,648")
            elif isinstance(number, float):
                require(abs(number) < LARGEST, field.name, number, f"a number below {LARGEST:g}")


def _flag(name: str) -> str:
    return name.replace("_", "-")
