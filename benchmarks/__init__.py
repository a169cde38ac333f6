"""Speed claims, each as a ratio against a peer that is timed in the same run."""
