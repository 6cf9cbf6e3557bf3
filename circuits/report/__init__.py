"""Reports: a comparison in, a folder of tables, circuits, figures and one page out."""

from circuits.report.page import figures_of, report_html
from circuits.report.words import headlines, warnings_of
from circuits.report.write import check_writable, figure_file_name, write_results

__all__ = [
    "check_writable",
    "figure_file_name",
    "figures_of",
    "headlines",
    "report_html",
    "warnings_of",
    "write_results",
]
