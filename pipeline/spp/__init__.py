"""The paper's arithmetic: receptive fields, windows on the map, the spatial pyramid."""
