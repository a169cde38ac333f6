"""How good it is: average precision, its interval, accuracy; and the files of others."""
