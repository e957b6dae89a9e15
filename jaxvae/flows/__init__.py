"""Invertible maps with learned parameters, and flows that transform a base distribution by them."""

from jaxvae.flows.autoregressive import (
    InverseAutoregressive,
    autoregressive_flow,
    autoregressive_init,
)
from jaxvae.flows.coupling import Affine, Coupling, coupling_flow, coupling_init
from jaxvae.flows.ordering import Reversed
from jaxvae.flows.spline import Spline

__all__ = [
    "Affine",
    "Coupling",
    "InverseAutoregressive",
    "Reversed",
    "Spline",
    "autoregressive_flow",
    "autoregressive_init",
    "coupling_flow",
    "coupling_init",
]
