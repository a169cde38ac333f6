"""Where the work runs: a Ray session, tasks, training workers, checkpoints."""
