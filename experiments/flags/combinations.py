"""Check for flags that have an effect only with certain values of another flag."""

import dataclasses
from typing import Any

LOCATION_SCALE = ("gaussian", "laplace")
"""Likelihoods with a location and a scale, as in `jaxvae.models.likelihoods`."""
NETWORKS = ("mlp", "conv", "resnet")
"""Models of the library, as in `jaxvae.models.registry`."""
GOES_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("beta", "beta_warmup_steps", "free_bits", "capacity"), ("objective", ("elbo",))
    ),
    "num_groups": ("objective", ("miwae", "piwae")),
    "elbo_weight": ("objective", ("ciwae",)),
    "alpha": ("objective", ("renyi",)),
    "num_intervals": ("objective", ("tvo",)),
    "num_components": ("prior", ("mixture", "vamp")),
    "num_categories": ("posterior", ("categorical", "relaxed_categorical")),
    "sigma": ("likelihood", LOCATION_SCALE),
    "standardize": ("likelihood", LOCATION_SCALE),
    "weight_decay": ("optimizer", ("adamw",)),
    "drop_condition": ("condition", ("label",)),
    **dict.fromkeys(("initialization", "activation"), ("model", ("mlp",))),
    "hidden": ("model", ("mlp", "conv")),
    **dict.fromkeys(
        ("channels", "blocks", "latent_channels", "rematerialize"), ("model", ("resnet",))
    ),
}
"""Flag -> the other flag, and its values with which the first flag has an effect."""

NO_EFFECT = {"standardize": "none", "sigma": "learned"}
"""Flag -> a value that is always valid: a run's config.json may hold it in place of auto."""
IMPLY_GAUSSIAN = ("sigma", "standardize", "sigma_rate")
IMPLY_BERNOULLI = ("binarize", "grey_probabilities")
"""Flags that choose --likelihood=auto, if one differs from its default."""


def implied_likelihood(config: Any) -> Any:
    """Likelihood that other flags imply, or None.

    Args:
        config: an `experiments.flags.config.TrainConfig`.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for names, likelihood in ((IMPLY_GAUSSIAN, "gaussian"), (IMPLY_BERNOULLI, "bernoulli")):
        for name in names:
            if getattr(config, name) not in (defaults[name], "none"):
                return likelihood
    return None


def check_combinations(config: Any) -> None:
    """Reject a flag that has no effect because of the value of another flag.

    Args:
        config: an `experiments.flags.config.TrainConfig`.

    Raises:
        ValueError: a flag has no effect; one line that names both flags.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, (other, values) in GOES_WITH.items():
        given, setting = getattr(config, name), getattr(config, other)
        if setting == "auto":
            continue  # checked again when it is chosen
        if other == "model" and setting not in NETWORKS:
            continue  # your own model may take it
        if given not in (defaults[name], NO_EFFECT.get(name)) and setting not in values:
            raise ValueError(
                f"--{name.replace('_', '-')} goes with --{other.replace('_', '-')}="
                f"{' or '.join(values)}, not {setting}. Change or leave out one of them."
            )
    if config.prior == "conditional" and config.condition == "none":
        raise ValueError("--prior=conditional needs --condition=label. Add it.")
    if config.condition != "none" and config.regularizer != defaults["regularizer"]:
        raise ValueError(
            "--regularizer compares the posteriors with one prior, and --condition makes one for "
            "each condition. Leave out one of them."
        )
    on_map = config.model == "resnet" and config.latent_channels is not None
    if on_map and config.latent_dim != defaults["latent_dim"]:
        raise ValueError(
            "--latent-dim has no effect with --latent-channels. Leave out one of them."
        )
    if config.likelihood == "auto":
        return
    if config.sigma_rate is not None and not config.learns_sigma:
        raise ValueError(
            "--sigma-rate has no effect except with --sigma=learned or per_channel, a likelihood "
            f"among {', '.join(LOCATION_SCALE)}, and an optimizer other than sgd. Leave it out."
        )
