"""The page about a run: ``aire-report``."""
