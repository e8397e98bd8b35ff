"""The page people look at, the table at the end of a run, and the plots of a schedule."""

from .changes import changes
from .page import write_report
from .schedule_plot import plot_svg, plot_text
from .table import summary_table

__all__ = ["changes", "plot_svg", "plot_text", "summary_table", "write_report"]
