"""Description of a model's preprocessing as JSON values, which a checkpoint stores."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxvae.preprocessing.conversion import Conversion
from jaxvae.preprocessing.rules import Preprocessing
from jaxvae.preprocessing.support import Support, Trained, check_rows, support_from_json

ABOUT = "preprocessing"
"""Key of the description in what a checkpoint stores."""
LONGEST_TEXT = 200


class Description(NamedTuple):
    """Preprocessing of rows as stored, without the data themselves.

    Attributes:
        conversion: (key, stored example) -> x.
        support: stored values that the conversion is defined for.
        trained: type and range of the training data as stored.
        resizes: True if images of other sizes are resized to the model's.
        name, unit, offset_bits, standardizes: as in `Preprocessing`.
    """

    conversion: Conversion
    support: Support
    trained: Trained
    resizes: bool
    name: str
    unit: str
    offset_bits: float
    standardizes: bool

    def check(self, rows: np.ndarray) -> None:
        """Check that rows are on the scale of the training data, as `check_rows`."""
        check_rows(rows, self.support, self.trained)

    def preprocessing(self, data_shape: tuple[int, ...]) -> Preprocessing:
        """Preprocessing of rows other than the training data, whose mean is not known: NaN."""
        mean = np.full(data_shape, np.nan, np.float32)
        return Preprocessing(
            self.conversion,
            self.name,
            self.offset_bits,
            self.unit,
            mean,
            self.standardizes,
            self.support,
        )


def describe(preprocessing: Preprocessing, train: Trained, *, resizes: bool) -> dict[str, Any]:
    """Describe a preprocessing as JSON values.

    Args:
        preprocessing: the preprocessing of the training data.
        train: type and range of the training data as loaded.
        resizes: True if images were resized.
    """
    support = preprocessing.support
    limits = [limit if math.isfinite(limit) else None for limit in support[:2]]
    return {
        "conversion": (preprocessing.drawn_once or preprocessing.conversion)._asdict(),
        "support": [*limits, support.whole],
        "trained": train._asdict(),
        "resizes": resizes,
        "name": preprocessing.name + (", anew for other rows" if preprocessing.drawn_once else ""),
        "unit": preprocessing.unit,
        "offset_bits": preprocessing.offset_bits,
        "standardizes": preprocessing.standardizes,
    }


def read_description(about: dict[str, Any]) -> Description | None:
    """Read the description in what a checkpoint stores; None if an older release wrote it.

    Raises:
        ValueError: it does not have the form that `describe` writes.
    """
    if ABOUT not in about:
        return None
    values = about[ABOUT]
    try:
        found = Description(
            conversion=Conversion.from_json(values["conversion"]),
            support=support_from_json(values["support"]),
            trained=Trained(**values["trained"]),
            **{name: values[name] for name in ("resizes", "name", "unit", "offset_bits")},
            standardizes=values["standardizes"],
        )
        _check_types(found)
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(
            f"the checkpoint's {ABOUT} must have the form that training writes; reading it gave: "
            f"{str(error)[:80]}. Restore the checkpoint."
        ) from error
    return found


def _check_types(found: Description) -> None:
    texts = (found.name, found.unit, found.trained.dtype)
    numbers = (found.offset_bits, found.trained.low, found.trained.high)
    if not all(isinstance(text, str) and len(text) <= LONGEST_TEXT for text in texts):
        raise ValueError(f"name, unit and dtype must be texts of up to {LONGEST_TEXT} characters")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError("offset_bits, low and high must be finite numbers")
    if not all(type(flag) is bool for flag in (found.resizes, found.standardizes)):
        raise ValueError("resizes and standardizes must be true or false")
