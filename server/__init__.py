"""Persephone's service: the control plane and the process that serves one model."""

__version__ = "0.1.0"
