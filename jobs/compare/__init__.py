"""Runs beside each other: tables, combinations, and what makes runs comparable."""
