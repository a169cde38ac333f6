"""train-bbox: one box regressor per class (paper 4.2; spp_train_bbox_regressor.m).

    spp train-bbox --config configs/raccoon_kangaroo.yaml --root /data/spp

Which windows train is decided from the box columns; then one task per class reads the vectors of its own windows only,
and solves the smaller of the primal and the dual system. The story is told in jobs/bbox/driver.py.
"""
