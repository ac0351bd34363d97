"""Example-level differential privacy at the client: DP-SGD in one compiled program."""

from .trainer import DPSupervised

__all__ = ["DPSupervised"]
