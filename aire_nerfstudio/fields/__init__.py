"""Coordinate networks: coordinates in, values out."""
