"""Tables, plots and HTML pages of results; reads result files and imports no model code."""

from hpa_lightning.report.plots import (
    plot_comparison,
    plot_curves,
    plot_matrix,
    plot_retention,
    plot_trade_off,
)
from hpa_lightning.report.run_page import render_page
from hpa_lightning.report.run_tables import matrix_table, method_table, run_table, safety_table, score_table
from hpa_lightning.report.significance import estimate
from hpa_lightning.report.study_report import (
    StudyCell,
    StudyGroup,
    SweepAxis,
    comparison_table,
    learning_table,
    mean_matrix_table,
    step_table,
    write_study_report,
)
from hpa_lightning.report.style import save_figure
from hpa_lightning.report.write import write_report
from hpa_lightning.table import Estimate, Table

__all__ = [
    "Estimate",
    "StudyCell",
    "StudyGroup",
    "SweepAxis",
    "Table",
    "comparison_table",
    "estimate",
    "learning_table",
    "matrix_table",
    "mean_matrix_table",
    "method_table",
    "plot_comparison",
    "plot_curves",
    "plot_matrix",
    "plot_retention",
    "plot_trade_off",
    "render_page",
    "run_table",
    "safety_table",
    "save_figure",
    "score_table",
    "step_table",
    "write_report",
    "write_study_report",
]
