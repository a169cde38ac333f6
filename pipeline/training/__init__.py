"""Gradient descent: fine-tuning a head, training a whole network, and what both share."""
