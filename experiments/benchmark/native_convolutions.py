"""XLA's native convolutions in place of the library's, to measure what the latter gain."""

from jaxvae.cpu import convolution


def use() -> None:
    """Let CPUs compute convolutions as GPUs and TPUs do, in this process from now on."""
    convolution.convolution_on_cpu = convolution.native_convolution
    convolution.transposed_convolution_on_cpu = convolution.native_transposed_convolution
