"""Conversion of weights between the library and PyTorch: transposed kernels, channels last."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from experiments.benchmark.pytorch.nets import Autoencoder
from experiments.benchmark.weights import Weights


def load(model: Autoencoder, weights: Weights) -> None:
    """Set a PyTorch model's parameters from the library's weights.

    Raises:
        ValueError: the names of the weights are not those of the model's net.
    """
    counterparts = list(_counterparts(model))
    if names := {there.name for there in counterparts} ^ weights.keys():
        raise ValueError(f"weights must be those of this net; {sorted(names)} are not in both.")
    with torch.no_grad():
        for there in counterparts:
            there.view[...] = weights[there.name].reshape(there.view.shape)
            there.parameter.copy_(torch.from_numpy(there.array))


def dump(model: Autoencoder) -> Weights:
    """Return a PyTorch model's parameters in the library's layout."""
    return {there.name: there.view.reshape(there.shape) for there in _counterparts(model)}


class _Counterpart(NamedTuple):
    """A parameter, a copy `array` of its values, and a `view` of the copy in the library's order.

    The library's array is the view, reshaped to `shape`.
    """

    name: str
    parameter: torch.Tensor
    array: np.ndarray
    view: np.ndarray
    shape: tuple[int, ...]


def _counterparts(model: Autoencoder) -> Iterator[_Counterpart]:
    return (_of_resnet if model.net.model == "resnet" else _of_layers)(model)


def _of_resnet(model: Autoencoder) -> Iterator[_Counterpart]:
    """Map modules that have the library's names: only kernels differ, and the names of scales."""
    for part, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        for path, parameter in network.named_parameters():
            *modules, leaf = path.split(".")
            is_scale = leaf == "weight" and parameter.dim() == 1
            leaf = "scale" if is_scale else {"weight": "kernel"}.get(leaf, leaf)
            array = _values(parameter)
            view = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            name = "/".join([part, "params", *modules, leaf])
            yield _Counterpart(name, parameter, array, view, view.shape)


def _of_layers(model: Autoencoder) -> Iterator[_Counterpart]:
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
    """Map kernels to [4, 4, in, out]; transposed ones are rotated by 180 degrees."""
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
    """Map kernels to [in, out]; an axis of an image is [channels, side, side] in PyTorch."""
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
    """Copy a parameter to a contiguous array on the host."""
    return np.array(parameter.detach().cpu().numpy(), order="C")
