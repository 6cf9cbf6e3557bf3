"""Reports: a comparison in, a folder of tables, circuits, figures and one page out."""

from circuits.report.methods import as_latex, bibtex, cited, latex_tables, methods_text
from circuits.report.page import figures_of, report_html
from circuits.report.words import headlines, warnings_of
from circuits.report.write import check_writable, write_results

__all__ = [
    "as_latex",
    "bibtex",
    "check_writable",
    "cited",
    "figures_of",
    "headlines",
    "latex_tables",
    "methods_text",
    "report_html",
    "warnings_of",
    "write_results",
]
