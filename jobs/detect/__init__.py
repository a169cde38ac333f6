"""detect: the SVMs and box regressors on the proposals of the test splits.

    spp detect --config configs/raccoon_kangaroo.yaml --root /data/spp [--voc FOLDER] [--coco FILE]

The work is in jobs/detect/driver.py.
"""
