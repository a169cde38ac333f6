"""The fully connected head, and a whole network with a pyramid in it."""
