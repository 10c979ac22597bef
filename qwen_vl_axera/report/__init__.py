"""report.html: what a work directory holds, as one page."""
