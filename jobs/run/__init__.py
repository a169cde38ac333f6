"""run: every stage that is not done yet.

    spp run --config configs/raccoon_kangaroo.yaml --root /data/spp --until extract
    ray job submit --working-dir . -- python -m jobs run --config configs/voc2007.yaml --root s3://bucket/voc07

Interrupted in any way, the same command goes on: what is committed is done. The story: index the data set; survey
which shards of which datasets are missing; let the shard loop make them, proposals and features side by side; fold the
commits of every complete dataset into its manifest; say so in the run's record, beside the data.
"""
