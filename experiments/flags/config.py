"""Flags of `experiments.train`: one frozen dataclass, checked before anything starts."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.flags.combinations import LOCATION_SCALE, check_combinations
from experiments.flags.processes import ALONE, Processes

Accelerator = Literal["auto", "cpu", "gpu", "tpu"]
ObjectiveName = Literal["elbo", "iwae", "miwae", "piwae", "ciwae", "renyi", "tvo"]
EstimatorName = Literal["reparameterized", "stl", "dreg", "score", "vimco"]
PosteriorName = Literal[
    "gaussian", "full_covariance", "low_rank", "iaf", "coupling", "spline",
    "von_mises_fisher", "relaxed_categorical", "categorical",
]  # fmt: skip
LikelihoodName = Literal[
    "auto", "bernoulli", "continuous_bernoulli", "gaussian", "laplace",
    "discretized_logistic", "logistic_mixture", "color_logistic_mixture", "categorical",
    "poisson", "negative_binomial", "zero_inflated_negative_binomial",
]  # fmt: skip
RegularizerName = Literal["none", "total_correlation", "dip_i", "dip_ii", "mmd", "density_ratio"]

LARGEST = 3.4e38
"""Largest number that a flag may have: about that of float32."""
LARGEST_SIDE = 16384
"""Largest height and width that pictures can be scaled to."""
MAY_CHANGE = frozenset(
    {"run", "accelerator", "num_devices", "num_steps", "num_epochs", "eval_samples"}
    | {"manual_dir", "data_dir", "tensorboard", "quiet", "processes", "compilation_cache"}
    | {"decay_steps", "schedule_start", "allow_other_data"}
)
"""Flags that may change when a run is continued: they do not affect a step's result, or they are
meant to change it from there on."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a variational auto-encoder, evaluate it, and write a report.

    Rerun the same command to continue a run, or raise --num-steps to train longer. Ctrl-C saves and
    stops. Without flags it trains on 28 x 28 digits in a minute or two, and needs no network.
    """

    run: Path | None = None
    """Folder of the run. Default: runs/DATASET-MODEL. If the folder holds a
    run, the command continues it and takes the flags that you leave out
    from it (but not those of the machine, such as --num-devices), so
    --run=RUN alone is enough."""
    dataset: str = "mnist_small"
    """mnist_small (ships with the code), mnist, fashion_mnist, kmnist,
    shapes:32 or shapes:64 (drawn shapes with textures, in colour, of
    that many pixels a side; computed), tfds:NAME, or your own data as
    npz:PATH, npy:PATH, npy:FOLDER (read from disk as needed) or
    folder:PATH (pictures; subfolders give labels). experiments/README.md
    lists the names of arrays and folders that are recognised."""
    manual_dir: str | None = None
    """Folder with the original files of mnist, fashion_mnist or kmnist, if
    they cannot be downloaded."""
    resize: tuple[int, int] | None = None
    """Only with --dataset=folder:PATH, as the next one: height and width.
    Every picture is scaled to cover them, and its centre is cropped.
    Without it, all pictures must have one size."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read, and count them in the first
    line of the run. Without it they are an error."""
    data_dir: str | None = None
    """Folder of data prepared by tensorflow-datasets (default: its own,
    ~/tensorflow_datasets), or for the prepared pixels of a folder:PATH of
    many pictures (default: data in the run's folder)."""
    num_validation: int | None = None
    """Number of training examples to set aside as the validation split.
    Default: the data set's own validation split, else 1,000
    (mnist_small, shapes), 5,000 (mnist, fashion_mnist, kmnist) or a tenth."""
    allow_other_data: bool = False
    """Continue the run although its data have changed. From then on it
    trains on the new data."""

    model: str = "mlp"
    """mlp; conv (images of 8 to 64 pixels); resnet (residual blocks, images of
    8 to 1,024 pixels); or package.module:function: your own function that
    returns a jaxvae.VAE. Its parameters may be any pytree, such as an
    Equinox module; floating point arrays are trained."""
    latent_dim: int = 32
    """Number of latents: the dimension of z."""
    latent_channels: int | None = None
    """resnet: the latents are a feature map with so many channels at each
    place of the smallest level, and --latent-dim has no effect. Default:
    a vector of --latent-dim latents."""
    hidden: tuple[int, ...] | None = None
    """mlp: widths of the encoder's layers (default 512 256). conv: channels
    of its levels (default: as many levels as the image size needs). The
    decoder mirrors the encoder."""
    channels: tuple[int, ...] | None = None
    """resnet: channels of the levels (default 32 64 128); each level has half
    the height and width of the one before."""
    blocks: int | None = None
    """resnet: residual blocks of each level (default 1)."""
    rematerialize: bool = False
    """resnet: compute inner values of the blocks again for the gradient, instead
    of keeping them. It saves memory of an accelerator, for larger batches,
    and takes about a third more time."""
    posterior: PosteriorName = "gaussian"
    """q(z|x), the encoder's distribution: gaussian (diagonal covariance),
    full_covariance, low_rank; iaf, coupling, spline (flows: more
    flexible, slower); von_mises_fisher (on the sphere);
    relaxed_categorical; categorical (discrete, with --estimator=vimco)."""
    prior: Literal["standard", "mixture", "vamp", "flow", "conditional"] = "standard"
    """p(z): standard (fixed: N(0, I), or uniform on the sphere or over the
    categories), or learned: mixture (of Gaussians), vamp (VampPrior:
    posteriors at learned inputs), flow, or with --condition conditional,
    p(z|y)."""
    condition: Literal["none", "label"] = "none"
    """label: a model of p(x|y), where y is the label of an example (array y,
    class folders, labels of tfds), which every layer sees."""
    drop_condition: float = 0.0
    """With --condition: share of the examples that train without their
    condition, so that the model has p(x) too; 0.1 is usual."""
    num_components: int = 50
    """Number of components of a mixture or vamp prior."""
    num_categories: int = 10
    """Number of categories of each latent of a categorical or
    relaxed_categorical posterior."""
    likelihood: LikelihoodName = "auto"
    """p(x|z), which must suit the data. Binary pixels: bernoulli. Real
    values: gaussian, laplace. Values in [0, 1]: continuous_bernoulli.
    8-bit integers: discretized_logistic, logistic_mixture,
    color_logistic_mixture (channels depend on each other), categorical.
    Counts: poisson, negative_binomial, zero_inflated_negative_binomial.
    auto: bernoulli for binary data and for grey drawings such as MNIST,
    color_logistic_mixture for 8-bit images in colour, logistic_mixture
    for other 8-bit images, negative_binomial for counts, gaussian for
    the rest; a line says which, and why."""
    sigma: float | Literal["auto", "learned", "per_channel", "per_pixel", "optimal"] = "auto"
    """Scale of the gaussian or laplace likelihood: a number; learned (a
    single scale), per_channel (a learned scale per column of vectors or
    channel of images), per_pixel (output by the decoder); or optimal
    (gaussian only: the batch's best value). auto: per_channel for
    vectors, learned for images."""
    standardize: Literal["auto", "columns", "none"] = "auto"
    """columns: the networks and a learned sigma see each column of vectors,
    or channel of images, with mean 0 and standard deviation 1 over the
    training split (gaussian, laplace). All results stay in the data's
    unit. none: as stored. auto: columns, except for 8-bit images."""
    binarize: Literal["auto", "dynamic", "static", "none"] = "auto"
    """Treat grey levels as probabilities of binary pixels: drawn anew at
    every use (dynamic), drawn once (static), or not at all (none). auto:
    dynamic for bernoulli, none otherwise."""
    grey_probabilities: bool = False
    """Feed grey levels to the bernoulli likelihood as if they were binary,
    with --binarize=none. Common in tutorials, but the result is not a
    log-likelihood of the data."""
    initialization: Literal["lecun", "torch"] = "lecun"
    """Initial weights of the mlp: those of flax (lecun) or of PyTorch
    (torch)."""
    activation: Literal["relu", "tanh"] = "relu"
    """Activation after each hidden layer of the mlp."""
    data_mean_init: bool = True
    """Start the decoder's output at the mean of the training data."""

    objective: ObjectiveName = "elbo"
    """Bound on log p(x) to maximise: elbo; iwae, miwae, piwae, ciwae
    (importance weighted, tighter with more --num-samples); renyi; tvo
    (thermodynamic). jaxvae/README.md says how they differ."""
    estimator: EstimatorName = "reparameterized"
    """Gradient estimator: reparameterized; stl (for elbo) and dreg (for the
    others) are less noisy; score is for --posterior=categorical alone, and
    vimco, made for it, needs --num-samples of 2 or more."""
    num_samples: int = 1
    """Posterior samples per example and step, K. miwae and piwae split them
    into --num-groups, which must divide them."""
    num_groups: int = 1
    """Only with --objective=miwae or piwae: number of groups that the samples
    are split into, each with its own bound."""
    elbo_weight: float = 0.5
    """Only with --objective=ciwae: weight of the ELBO in its mix with IWAE."""
    alpha: float = 0.5
    """Only with --objective=renyi: its order; 0 gives iwae, 1 gives elbo."""
    num_intervals: int = 5
    """Only with --objective=tvo: number of intervals of the integral; more are
    tighter."""
    beta: float = 1.0
    """Only with --objective=elbo, as the next five: weight of the KL term;
    above 1 gives a beta-VAE."""
    beta_warmup_steps: int = 0
    """Steps over which beta rises from 0 to --beta."""
    beta_schedule: Literal["linear", "cosine", "cyclical"] = "linear"
    """Shape of that rise: linear, cosine, or cyclical (four cycles, each
    --beta-warmup-steps of linear rise and as many at --beta)."""
    free_bits: float | None = None
    """Nats (not bits) of KL per latent that are not penalised: a latent's KL
    is not reduced below them."""
    capacity: float | None = None
    """Target of the KL in nats: the penalty is beta |KL - capacity|."""
    capacity_steps: int = 0
    """Steps over which the capacity rises from 0."""
    regularizer: RegularizerName = "none"
    """Penalty on the whole batch: total_correlation (beta-TCVAE), dip_i,
    dip_ii (DIP-VAE), mmd (InfoVAE, WAE), density_ratio (FactorVAE, with a
    discriminator)."""
    regularizer_weight: float = 1.0
    """Number that multiplies the penalty. In the papers' symbols: beta - 1 of
    beta-TCVAE, lambda of DIP-VAE (dip_i: lambda of the off-diagonal, ten
    times it of the diagonal), lambda - beta of InfoVAE (lambda of WAE, with
    --beta=0), gamma of FactorVAE."""

    batch_size: int = 128
    """Examples per step, over all devices."""
    num_steps: int = 5000
    """Number of training steps. A larger number continues a finished run."""
    num_epochs: float | None = None
    """Number of passes over the training data, instead of --num-steps."""
    optimizer: Literal["adam", "adamw", "adamax", "sgd"] = "adam"
    """Optimizer, from optax."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    sigma_rate: float | None = None
    """Learning rate of --sigma=learned and per_channel, as a multiple of
    that of the networks, with every optimizer except sgd. Default: 10."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up: constant, or a fall to 0 at step
    --decay-steps."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    decay_steps: int | None = None
    """Step at which cosine and linear schedules end. Default: the number of
    steps that the run was started with. To continue past that step, give
    a later one: the learning rate then falls to 0 there instead."""
    schedule_start: int | None = None
    """Step at which warm-up and schedule start again, at or before the
    current one; --decay-steps is then the step at which they end.
    Default: 0, or the run's own value."""
    weight_decay: float = 0.0
    """Only with --optimizer=adamw: decoupled weight decay of matrices and
    kernels."""
    gradient_clip: float | None = None
    """Largest global norm of a gradient; longer ones are scaled down. None:
    no limit."""
    accumulate_steps: int = 1
    """Number of steps whose gradients are averaged into one update."""
    average_decay: float | None = 0.998
    """Decay of the running average of the weights, which evaluation uses;
    None: no average."""
    max_skipped: int = 20
    """Number of steps in a row with a NaN or infinite loss or gradient norm
    after which the run stops. Each such step is skipped."""
    rows_at_once: int | None = None
    """Rows (examples times samples) whose gradient a device computes at
    once; larger batches are computed in blocks. Default: on a CPU 1,000
    (conv: 64; resnet: 262,144 values of its first level), to fit its
    cache; elsewhere all rows. A regularizer and
    --sigma=optimal need all rows."""
    deterministic_reduction: bool = False
    """Add up gradients in a fixed order: the run is then bit-for-bit the
    same on every number of devices that divides --virtual-shards, for one
    kind of hardware and one release of jax. On a GPU, convolutions are
    reproducible only with this flag."""
    virtual_shards: int = 8
    """Number of parts of the batch whose gradients are added in that fixed
    order. Every device holds this many gradients in memory."""
    seed: int = 0
    """Seed of initialisation, data order and sampling."""

    eval_every: int = 500
    """Steps between evaluations on the validation split; each is followed by
    a checkpoint."""
    log_every: int = 20
    """Steps between rows of metrics.jsonl."""
    eval_samples: int | None = None
    """Samples K per example of the final log-likelihood estimate. Default:
    100, or fewer where that would take longer than training did and more
    than half a minute; the results name the number."""
    eval_batch_size: int = 500
    """Examples evaluated at once, over all devices."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Number type of the networks' computations. Parameters, bounds and
    gradients are always float32, and float32 products keep full precision
    on every device."""
    accelerator: Accelerator = "auto"
    """Device type. auto: the one jax picks; any other value fails if jax
    does not find it."""
    compilation_cache: str = "auto"
    """Folder for compiled programs, which make the next start quicker; none:
    compile at every start. auto: JAX_COMPILATION_CACHE_DIR if it is set,
    else jaxvae in your cache folder (~/.cache)."""
    num_devices: int | None = None
    """Number of devices per process. Default: all; on a CPU 1, and larger
    numbers simulate devices."""
    processes: Processes = ALONE
    """Flags for running as one of several processes."""
    tensorboard: bool = False
    """Also write TensorBoard event files; needs the extra `tensorboard`."""
    quiet: bool = False
    """Show no progress on the screen."""

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        model = self.model.translate(str.maketrans("/\\:.", "----"))
        name = self.dataset.translate(str.maketrans("/\\:", "---")).strip("-.")
        return self.run or Path("runs") / f"{name}-{model}"

    def steps(self, num_train: int) -> int:
        """Number of training steps, given the size of the training split."""
        if self.num_epochs is None:
            return self.num_steps
        return math.ceil(self.num_epochs * num_train / self.batch_size)

    @property
    def learns_sigma(self) -> bool:
        """True if sigma is a parameter that --sigma-rate applies to."""
        family = self.likelihood in LOCATION_SCALE
        learned = self.sigma in ("auto", "learned", "per_channel")
        return family and learned and self.optimizer != "sgd"

    def check(self) -> None:
        """Check the values of the flags and their combinations.

        Raises:
            ValueError: a value or combination is invalid; one line that names the flag.
        """
        self.processes.check()
        at_least_one = (
            "latent_dim num_samples batch_size num_steps accumulate_steps max_skipped eval_every "
            "log_every eval_batch_size num_groups num_intervals num_components "
            "virtual_shards"
        )
        for name in at_least_one.split():
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("eval_samples", "latent_channels", "blocks"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
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
        require(0 <= self.drop_condition < 1, "drop_condition", self.drop_condition, "in [0, 1)")
        for name in (
            *("learning_rate", "gradient_clip", "num_epochs", "num_devices", "decay_steps"),
            *("rows_at_once", "sigma_rate"),
        ):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "positive")
        require_representable(self)
        sizes = self.resize or (1, 1)
        valid = len(sizes) == 2 and all(1 <= size <= LARGEST_SIDE for size in sizes)
        require(valid, "resize", self.resize, f"two numbers from 1 to {LARGEST_SIDE:,}")
        last = None if self.run is None else self.run.name
        require(last not in ("", ".."), "run", self.run, "a folder of its own, with a name")
        if self.average_decay is not None:
            require(0 < self.average_decay < 1, "average_decay", self.average_decay, "in (0, 1)")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        check_combinations(self)
        if self.estimator == "score" and self.posterior != "categorical":
            raise ValueError(
                "--estimator=score goes with --posterior=categorical: for other posteriors its "
                "noise drowns the gradient. Use reparameterized, stl, dreg or vimco."
            )
        if self.capacity_steps and self.capacity is None:
            raise ValueError("--capacity-steps has no effect without --capacity. Add --capacity.")
        if self.beta_schedule != "linear" and not self.beta_warmup_steps:
            raise ValueError("--beta-schedule has no effect without --beta-warmup-steps. Add it.")
        start, end = self.schedule_start or 0, self.decay_steps
        ends_later = self.schedule == "constant" or end is None or end > start
        require(ends_later, "decay_steps", end, f"above --schedule-start={start}")
        if self.regularizer_weight != 1 and self.regularizer == "none":
            raise ValueError("--regularizer-weight has no effect without --regularizer. Add it.")
        if self.deterministic_reduction:
            self._check_deterministic_reduction()
        elif self.virtual_shards != defaults["virtual_shards"]:
            raise ValueError(
                "--virtual-shards has no effect without --deterministic-reduction. Add it."
            )

    def _check_deterministic_reduction(self) -> None:
        if self.regularizer != "none":
            raise ValueError(
                "--deterministic-reduction splits the batch into parts, but "
                f"--regularizer={self.regularizer} needs the whole batch. Leave out one of them."
            )
        if self.rows_at_once is not None:
            raise ValueError(
                "--rows-at-once has no effect with --deterministic-reduction. Leave out one of "
                "them."
            )
        require(
            self.batch_size % self.virtual_shards == 0,
            "batch_size",
            self.batch_size,
            f"a multiple of --virtual-shards={self.virtual_shards}",
        )


def require(holds: bool, name: str, value: object, what: str) -> None:
    """Raise unless the value of a flag is valid.

    Args:
        holds: True if the value is valid.
        name: field of the flag.
        value: the value that was given.
        what: description of valid values, to follow "must be".

    Raises:
        ValueError: `holds` is False; one line that names the flag.
    """
    if not holds:
        raise ValueError(f"--{_flag(name)} must be {what}, got {value}.")


def require_representable(flags: Any) -> None:
    """Check that all numbers fit in 32 bits, with which devices compute.

    Args:
        flags: a dataclass of flags.

    Raises:
        ValueError: a number does not fit; one line that names the flag.
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
