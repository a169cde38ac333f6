"""index: a data set becomes the tables ``images`` and ``objects``.

    spp index --config configs/raccoon_kangaroo.yaml --root /data/spp

Reads ``ImageSets/Main/<split>.txt``, ``JPEGImages`` and ``Annotations`` of one or several devkits (``VOC2007``,
``VOC2012``, ...), or labelled images in folders or Parquet tables (``jobs/dataset/labelled.py``), on any fsspec path.
It runs on every ``spp run``, since it is what notices a change; unchanged images give the rows, and so the shards, that
are there already.
"""
