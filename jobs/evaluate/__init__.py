"""evaluate: VOC average precision of the detections, per class, one task each.

    spp evaluate --config configs/raccoon_kangaroo.yaml --root /data/spp
    spp evaluate --config configs/raccoon_kangaroo.yaml --detections 'results/comp4_det_test_*.txt'

The second form reads the result files of any detector, and the data set itself; it stores nothing.

The work is in jobs/evaluate/driver.py.
"""
