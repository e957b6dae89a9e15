"""Roles of named arrays: data or labels, of one split or of all examples.

Names are compared without case and without separators, and a split may stand before or after:
x_train, X_train, trainX, train_images, images-train and train are all the data of the training
split; y_train, train_labels and labelsTrain its labels.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

DATA = ("x", "data", "images", "image", "imgs", "img", "features", "feature", "inputs", "input",
        "observations", "observation", "obs", "examples", "arr_0")  # fmt: skip
LABELS = ("y", "labels", "label", "targets", "target", "classes", "class")
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
WHOLE = "all"
"""Part of arrays that belong to no split."""
MOST_SHOWN = 20
"""Most arrays that an error lists."""


class Roles(NamedTuple):
    """Names of the arrays to read.

    Attributes:
        data: Part -> name of its data: parts of `SPLIT_WORDS`, or only `WHOLE`.
        labels: Part -> name of its labels, if it has any.
        left_out: Names of all other arrays.
    """

    data: dict[str, str]
    labels: dict[str, str]
    left_out: list[str]


def _compact(name: str) -> str:
    return re.sub(r"[ _.-]", "", name.lower())


def _known() -> dict[str, tuple[str, str]]:
    """Map every known name, in compact form, to its kind (data or labels) and part."""
    words = {"data": [_compact(word) for word in DATA], "labels": list(LABELS)}
    known = {word: (kind, WHOLE) for kind, names in words.items() for word in names}
    for split, names in SPLIT_WORDS.items():
        for name in names:
            known[name] = ("data", split)
            for kind, others in words.items():
                known |= {
                    form: (kind, split) for word in others for form in (word + name, name + word)
                }
    return known


KNOWN = _known()


def find_roles(
    where: str, names: Sequence[str], describe: Callable[[str], str], suffix: str = ""
) -> Roles:
    """Find the data and labels among named arrays.

    Args:
        where: Place of the arrays, for messages.
        names: Names of all arrays.
        describe: Function of a name that returns the array's type and shape in words.
        suffix: What follows a name in messages, such as ".npy".

    Raises:
        ValueError: Nothing, or more than one array, could be the data of a part; the text lists
            all arrays.
    """
    candidates: dict[tuple[str, str], list[str]] = {}
    for name in names:
        candidates.setdefault(KNOWN.get(_compact(name), ("unknown", WHOLE)), []).append(name)
    splits = [split for split in SPLIT_WORDS if ("data", split) in candidates]
    data = {split: candidates["data", split] for split in splits}
    if not splits:
        whole = candidates.get(("data", WHOLE)) or candidates.get(("unknown", WHOLE), [])
        data = {WHOLE: whole}
    labels = {part: candidates.get(("labels", part), []) for part in data}
    if len(data) == 1:  # labels without a split can only belong to this part
        labels = {
            part: own or candidates.get(("labels", WHOLE), []) for part, own in labels.items()
        }
    for role in (data, labels):
        for found in role.values():
            if len(found) > 1 or (role is data and not found):
                raise ValueError(_unclear(where, names, found, describe, suffix))
    chosen = {part: found[0] for part, found in data.items()}
    labelled = {part: found[0] for part, found in labels.items() if found}
    used = {*chosen.values(), *labelled.values()}
    return Roles(chosen, labelled, [name for name in names if name not in used])


def _unclear(
    where: str,
    names: Sequence[str],
    found: Sequence[str],
    describe: Callable[[str], str],
    suffix: str,
) -> str:
    """Word the error for several candidates of one role, or for no data at all."""
    listed = [f"{name}{suffix} {describe(name)}".strip() for name in names[:MOST_SHOWN]]
    more = f" and {len(names) - MOST_SHOWN:,} more" if len(names) > MOST_SHOWN else ""
    holds = f"it holds {', '.join(listed)}{more}" if names else "it holds no array"
    if any(_compact(name) in KNOWN for name in found):
        these = " and ".join(f"{name}{suffix}" for name in found)
        return (
            f"{where} must have one array for each role, but {these} have the same role; {holds}. "
            "Rename or remove all but one of them."
        )
    return (
        f"{where} must have arrays named x_train{suffix} and x_test{suffix}, or one named "
        f"x{suffix}; {holds}. Rename the data to x{suffix} and labels to y{suffix}."
    )
