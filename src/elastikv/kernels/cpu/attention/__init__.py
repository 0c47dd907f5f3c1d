"""Rotation, the writing of cells, and attention over them."""
