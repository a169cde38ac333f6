"""pretrain: a whole network, body and classifier, trained on labelled images (paper 2.3, 3.1).

    spp pretrain --config configs/pretrain_imagenet.yaml --root /data/spp --export zf5.safetensors
    spp run --config configs/voc2007.yaml --root /data/spp --set features.body=zf5 \
        --set features.weights=zf5.safetensors

The story: the index tells each image's class. Some training images are held out. A worker, or several together, each
with a GPU of its own, go through the others epoch by epoch, at one size or at two in turn, and lower the learning rate
when the error on those held out stands still. Checkpoints let an interrupted training go on. The trained network is the
dataset ``network``, what it went through ``pretraining_curve``. Then it is tested, view by view, on the test splits, or
where there are none on the images held out: nothing was ever chosen on the former.

The driver is jobs/pretrain/driver.py; what a worker does is in jobs/pretrain/worker.py.
"""
