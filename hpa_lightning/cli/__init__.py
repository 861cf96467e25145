"""The command `hpa-lightning`, one file for each command."""

from hpa_lightning.cli.app import main

__all__ = ["main"]
