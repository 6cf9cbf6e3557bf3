"""Reports: a comparison in, a folder of tables, circuits, figures and one page out."""

from circuits.report.page import figures_of, report_html
from circuits.report.words import headlines, warnings_of
from circuits.report.write import check_writable, write_results

__all__ = [
    "check_writable",
    "figures_of",
    "headlines",
    "report_html",
    "warnings_of",
    "write_results",
]
