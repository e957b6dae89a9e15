"""Names of the labels that a run's model is conditioned on, as a checkpoint stores them."""

from typing import Any

from jaxvae.models.condition import Condition

CATEGORIES = "categories"
"""Key of the names in what a checkpoint stores."""
MOST_CATEGORIES, LONGEST_NAME = 10_000, 200


def read_categories(about: dict[str, Any], condition: Any) -> list[str] | None:
    """Read the names of a model's labels; None if its condition is none of labels with names.

    Args:
        about: what the checkpoint stores.
        condition: `VAE.condition` of its model.

    Raises:
        ValueError: they are not a list of different short texts, one for each label of the model.
    """
    names = about.get(CATEGORIES)
    if names is None:
        return None
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    different = texts and len(set(names)) == len(names) <= MOST_CATEGORIES
    short = different and all(len(name) <= LONGEST_NAME for name in names)
    count = condition.num_categories if isinstance(condition, Condition) else None
    if not short or len(names) != count:
        raise ValueError(
            f"the checkpoint's {CATEGORIES} must be a list of different names, one for each label "
            "of its model. Restore the checkpoint from a copy."
        )
    return list(names)
