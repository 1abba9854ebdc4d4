"""What is learned, and in which units."""
