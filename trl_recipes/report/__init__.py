"""Charts and pages of a run, or of models beside each other: one HTML file, nothing outside it.

They are made from what a run leaves on disk, so an old run can have its page made again.
"""

from trl_recipes.report.page import write_comparison, write_report, write_results

__all__ = ["write_comparison", "write_report", "write_results"]
