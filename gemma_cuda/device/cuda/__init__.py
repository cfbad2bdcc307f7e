"""An NVIDIA GPU through CuPy."""

from .device import Cuda

__all__ = ["Cuda"]
