"""The library's weights in a PyTorch net, and back: kernels transposed, pixels before channels."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from experiments.benchmark.pytorch.nets import Autoencoder
from experiments.benchmark.weights import Weights


def load(model: Autoencoder, weights: Weights) -> None:
    """Set a model's parameters from the library's.

    Raises:
        ValueError: the weights are those of another net.
    """
    counterparts = list(_counterparts(model))
    if names := {there.name for there in counterparts} ^ weights.keys():
        raise ValueError(f"weights must be those of this net; {sorted(names)} have no counterpart.")
    with torch.no_grad():
        for there in counterparts:
            there.view[...] = weights[there.name].reshape(there.view.shape)
            there.parameter.copy_(torch.from_numpy(there.array))


def dump(model: Autoencoder) -> Weights:
    """A model's parameters as the library has them."""
    return {there.name: there.view.reshape(there.shape) for there in _counterparts(model)}


class _Counterpart(NamedTuple):
    """A parameter, its values [as PyTorch has them], and a view of these as the library has them.

    The library's own array is the view in another `shape`.
    """

    name: str
    parameter: torch.Tensor
    array: np.ndarray
    view: np.ndarray
    shape: tuple[int, ...]


def _counterparts(model: Autoencoder) -> Iterator[_Counterpart]:
    side, channels = model.decoder.side, model.net.hidden[-1]
    is_image = model.net.model == "conv"
    for part, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        for index, layer in enumerate(network.convolutions):
            kind = "Conv" if part == "encoder" else "ConvTranspose"
            yield from _convolution(f"{part}/params/{kind}_{index}", layer)
        for index, layer in enumerate(network.dense):
            from_image = is_image and part == "encoder" and index == 0
            to_image = is_image and part == "decoder" and index == len(network.dense) - 1
            block = (channels, side, side)
            yield from _dense(f"{part}/params/Dense_{index}", layer, block, from_image, to_image)
    bias = model.decoder.output_bias
    if bias is not None:
        array = _values(bias)
        view = array.transpose(1, 2, 0)
        yield _Counterpart("decoder/params/output_bias", bias, array, view, view.shape)


def _convolution(name: str, layer: Any) -> Iterator[_Counterpart]:
    """Kernels [4, 4, in, out]; the library's transposed ones are turned by 180 degrees."""
    kernel, bias = layer.weight, layer.bias
    array = _values(kernel)
    view = array.transpose(2, 3, 1, 0)
    if isinstance(layer, nn.ConvTranspose2d):
        view = array.transpose(2, 3, 0, 1)[::-1, ::-1]
    yield _Counterpart(f"{name}/kernel", kernel, array, view, view.shape)
    if bias is not None:
        array = _values(bias)
        yield _Counterpart(f"{name}/bias", bias, array, array, array.shape)


def _dense(
    name: str, layer: Any, block: tuple[int, ...], from_image: bool, to_image: bool
) -> Iterator[_Counterpart]:
    """Kernels [in, out]; the side that is an image is [channels, side, side] in PyTorch."""
    array, bias = _values(layer.weight), _values(layer.bias)
    kernel_view, bias_view = array.T, bias
    if from_image:
        kernel_view = array.reshape(-1, *block).transpose(2, 3, 1, 0)
    if to_image:
        kernel_view = array.reshape(*block, -1).transpose(3, 1, 2, 0)
        bias_view = bias.reshape(block).transpose(1, 2, 0)
    yield _Counterpart(f"{name}/kernel", layer.weight, array, kernel_view, array.T.shape)
    yield _Counterpart(f"{name}/bias", layer.bias, bias, bias_view, bias.shape)


def _values(parameter: torch.Tensor) -> np.ndarray:
    """[Contiguous] a copy on the host."""
    return np.array(parameter.detach().cpu().numpy(), order="C")
