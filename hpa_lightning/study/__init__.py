"""A study: a grid of ordinary runs, declared in YAML, run cell by cell, resumable, with tables and figures."""

from hpa_lightning.study.grid import Cell, Group, Study
from hpa_lightning.study.runner import run_cells
from hpa_lightning.study.store import Store
from hpa_lightning.study.study_file import read_study

__all__ = ["Cell", "Group", "Store", "Study", "read_study", "run_cells"]
