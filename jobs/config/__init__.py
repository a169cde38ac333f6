"""The config of a run: one file per section, and what they have in common."""
