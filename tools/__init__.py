"""Programs one calls oneself: reports, audits, plans, comparisons."""
