"""What runs where: one module per stage, the command line, the scheduling of shards on Ray."""
