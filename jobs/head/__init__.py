"""finetune: the head fc6, fc7, fc8, trained on windows of the training images (paper 4.2).

    spp finetune --config configs/raccoon_kangaroo.yaml --root /data/spp

The story: of every training image some windows are drawn, a quarter foreground, each at a random one of the scales,
half of them mirrored; the actors that extract features pool them into the dataset ``training_windows``. Those of the
image as it is are read where they are stored, so that only mirrored images pass the body again. The training then runs
on these alone and never touches an image. Where fc6 and fc7 are pretrained it follows the paper's schedule;
elsewhere the learning rate and the length are chosen on images held out of the training splits, and the head is then
trained once more, on all. Checkpoints let an interrupted training go on; ``training_curve`` keeps what it went through.

The driver is jobs/head/driver.py; windows are drawn in jobs/head/actor.py.
"""
