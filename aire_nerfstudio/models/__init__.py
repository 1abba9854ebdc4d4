"""nerfstudio models, one task a file."""
