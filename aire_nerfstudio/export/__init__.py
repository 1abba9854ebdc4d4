"""What a trained network stands for, as a file other programs read."""
