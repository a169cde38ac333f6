"""Boxes that may hold an object: methods that make them, files that hold them, how good they are."""
