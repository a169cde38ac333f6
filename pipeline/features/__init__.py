"""Vectors of regions, of warped windows, and of whole images."""
