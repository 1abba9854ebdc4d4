"""What the two theorems of the paper say about a given network."""
