"""The CPU emulator, which runs every thread of a kernel."""

from .device import Emulator

__all__ = ["Emulator"]
