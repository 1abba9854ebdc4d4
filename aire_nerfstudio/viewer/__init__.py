"""What nerfstudio's viewer shows of an adaptation, and what can be asked of it there."""
