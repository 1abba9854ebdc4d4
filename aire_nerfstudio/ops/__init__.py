"""Numerics with a fast path; imports torch only."""
