"""Pages that show a run, or models beside each other: one HTML file each, with nothing outside it.

They are made from what a run leaves on disk, so an old run can have its page made again.
"""

from trl_recipes.report.comparison_page import comparison_page
from trl_recipes.report.run_page import run_page
from trl_recipes.report.writing import conclude, write_comparison, write_report

__all__ = ["comparison_page", "conclude", "run_page", "write_comparison", "write_report"]
