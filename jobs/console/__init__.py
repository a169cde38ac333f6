"""What commands print: tables, numbers with units, what a run made."""
