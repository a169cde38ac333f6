"""extract: one vector per proposal (``features``) and per ground-truth box of the training splits (``truth_features``).

    spp extract --config configs/raccoon_kangaroo.yaml --root /data/spp

Actors hold the body, one per GPU (or on CPU cores), and write the Parquet files themselves: feature bytes travel
neither through Ray's object store nor through the driver. The actor is in ``jobs/features/actor.py``.

An image passes the body once per scale. Who holds its maps also pools its annotated boxes, and the windows that a head
will be trained on (``beside.py``), into parts of shards that are made later (``truth.py``, ``jobs/head/actor.py``).
"""
