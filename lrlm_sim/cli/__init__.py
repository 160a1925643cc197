"""The command line: ``lrlm``."""

from lrlm_sim.cli.app import main

__all__ = ["main"]
