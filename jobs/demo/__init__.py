"""demo: draw a small data set, run the pipeline on it, ask it a few things.

    spp demo            (what `make demo` runs; everything goes into the folder demo/)

Nothing is downloaded: the pictures are drawn, and the body's weights come with a Python package. Repeated, it redoes
nothing, since everything that it makes is committed.
"""
