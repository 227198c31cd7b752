"""Run folders, tables, figures and pages: the only layer that writes results."""
