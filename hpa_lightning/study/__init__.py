"""A study: a grid of ordinary runs, declared in YAML, run cell by cell, resumable, with tables and figures."""

from hpa_lightning.study.grid import Cell, Group, Study, read_study
from hpa_lightning.study.runner import run_cells
from hpa_lightning.study.store import Store

__all__ = ["Cell", "Group", "Store", "Study", "read_study", "run_cells"]
