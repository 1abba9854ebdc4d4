"""Method configurations: values only."""
