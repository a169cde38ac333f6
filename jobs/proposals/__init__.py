"""propose: boxes that may hold an object, for every image. CPU tasks, one shard each.

    spp propose --config configs/raccoon_kangaroo.yaml --root /data/spp

The stage reports recall@0.5 and MABO per split when its last shard is there.
"""
