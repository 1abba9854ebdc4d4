"""Speed of sine networks, side by side in one process: ``aire-bench``."""
