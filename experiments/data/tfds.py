"""tfds:NAME: any image data set that tensorflow-datasets has prepared as array_record.

TensorFlow is needed to prepare most of these data sets, but not to read them here. Parquet, the
other format with random access, is rejected: tensorflow-datasets 4.9.10 loses examples with it.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.registered import DatasetNotFoundError

from experiments.data.arrays import stored
from experiments.data.pictures.decode import decode
from experiments.data.splits import SPLITS, Examples, Source

CLASS_NAMES = ("type", "pythonClassName", "python_class_name")
"""Keys under which features.json stores the class of a feature."""
MODE_OF_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def read_source(name: str, data_dir: str | None) -> Source:
    """Read the data set NAME or NAME/CONFIG that is prepared in data_dir.

    If there is no test split, the validation split becomes the test split. A data set with a single
    split is split 80/10/10 by a fixed permutation.
    """
    builder = _prepared(name, data_dir)
    present = list(builder.info.splits)
    splits = [split for split in SPLITS if split in present] or present
    parts = {split: read(builder, split) for split in splits}
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return Source(
        f"tfds:{name}",
        parts,
        what=builder.info.full_name,
        origin=f"from the splits {', '.join(splits)} of tensorflow-datasets",
    )


def read(builder: Any, split: str) -> Examples:
    """Read all examples of a prepared split, in the order in which they are stored."""
    features = builder.info.features
    image = _name_of_image(builder)
    labelled = "label" in features and _is_integer(features["label"])
    wanted = tfds.features.FeaturesDict(
        {key: features[key] for key in ([image, "label"] if labelled else [image])}
    )
    mode = _mode(builder, image) if isinstance(features[image], tfds.features.Image) else None
    decoders = {image: tfds.decode.SkipDecoding()} if mode else None
    images, labels = [], []
    for record in _records(builder, split):
        example = wanted.deserialize_example_np(record, decoders=decoders)
        pixels = decode(io.BytesIO(example[image]), mode) if mode else example[image]
        images.append(np.asarray(pixels))
        labels.append(example.get("label"))
        _require_one_size(builder, images[0], images[-1])
    return Examples(
        stored(np.stack(images), f"{image} in {split} of {builder.info.full_name}"),
        np.asarray(labels, np.int32) if labelled else None,
    )


def one_line(error: Exception) -> str:
    """Join the lines of an error text of tensorflow-datasets."""
    return " ".join(str(error).split())


def _prepared(name: str, data_dir: str | None) -> Any:
    arguments = repr(name) if data_dir is None else f"{name!r}, data_dir={data_dir!r}"
    command = (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({arguments})'
        ".download_and_prepare(file_format='array_record')\""
    )
    _require_known_features(name, data_dir)
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"tfds:{name} must be prepared by tensorflow-datasets; it is not in "
            f"{data_dir or tfds.core.constants.DATA_DIR}. Prepare it once, where tensorflow is "
            f"installed too (python -m pip install tensorflow): {command}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"tfds:NAME must name one data set, as tfds:mnist or tfds:NAME/CONFIG; for {name!r} "
            f"tensorflow-datasets gave: {str(error).splitlines()[0]} Correct the name."
        ) from error
    formats = {kind.value for kind in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"tfds:{name} must be prepared as array_record; {builder.data_dir} has it as "
            f"{', '.join(sorted(formats))}. Move that folder away and prepare it anew, where "
            f"tensorflow is installed too (python -m pip install tensorflow): {command}"
        )
    return builder


def _require_known_features(name: str, data_dir: str | None) -> None:
    """Reject prepared data with feature classes from outside tensorflow-datasets.

    tensorflow-datasets imports the module of any class that the data name, which runs the module.

    Raises:
        ValueError: A class is from outside, a file is invalid, or the name leads out of data_dir.
    """
    own, _, rest = name.replace(":", "/").partition("/")
    if not re.fullmatch(r"[\w-]+", own) or ".." in rest:
        raise ValueError(
            f"tfds:NAME must name one data set, as tfds:mnist or tfds:NAME/CONFIG; got {name!r}. "
            "Correct the name."
        )
    folder = tfds.core.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / own
    if not folder.exists():
        return
    for path in (*folder.glob("*/features.json"), *folder.glob("*/*/features.json")):
        try:
            found = list(_class_names(json.loads(path.read_text())))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} must be JSON; reading it gave: {error}.") from error
        for other in (one for one in found if not one.startswith("tensorflow_datasets.")):
            raise ValueError(
                f"{path} must have features of tensorflow-datasets, got {other[:80]!r}, which is "
                "not imported merely because data name it. Convert the data, and use npz:PATH."
            )


def _class_names(content: Any) -> Iterator[str]:
    """Find the names of classes in the contents of features.json."""
    remaining = [content]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            yield from (value[key] for key in CLASS_NAMES if isinstance(value.get(key), str))
            remaining += value.values()
        elif isinstance(value, list):
            remaining += value


def _records(builder: Any, split: str) -> Sequence[bytes]:
    try:
        source = builder.as_data_source(
            split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            file_format="array_record",
        )
        records = source.__getitems__(range(len(source)))
        if not all(records):  # array_record returns empty records for some truncated files
            raise RuntimeError("some records are empty")
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{builder.data_dir} must hold a whole prepared data set; reading its {split} split "
            f"gave: {one_line(error)}. Delete that folder and prepare it again."
        ) from error
    return records


def _name_of_image(builder: Any) -> str:
    features = builder.info.features
    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    if len(images) == 1:
        return images[0]
    if "image" not in features:
        raise ValueError(
            f"{builder.info.full_name} must have one image, or a feature named image; its features "
            f"are {', '.join(sorted(features))}. Use another data set."
        )
    return "image"


def _is_integer(feature: Any) -> bool:
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)


def _mode(builder: Any, image: str) -> str:
    feature = builder.info.features[image]
    channels = feature.shape[-1]
    if feature.np_dtype != np.uint8 or channels not in MODE_OF_CHANNELS:
        raise ValueError(
            f"{image} of {builder.info.full_name} must be of 8 bits and 1, 3 or 4 channels; it is "
            f"{feature.np_dtype} of {channels}. Use another data set."
        )
    return MODE_OF_CHANNELS[channels]


def _require_one_size(builder: Any, first: np.ndarray, other: np.ndarray) -> None:
    if first.shape != other.shape:
        raise ValueError(
            f"All images of {builder.info.full_name} must have one size; one is "
            f"{list(first.shape)}, another {list(other.shape)}. Resize them and use npz:PATH."
        )
