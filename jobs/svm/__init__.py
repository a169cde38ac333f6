"""train-svm: one linear SVM per class, with hard negatives (paper 4.2).

    spp train-svm --config configs/raccoon_kangaroo.yaml --root /data/spp

The story: take some negatives of every class at random, and train. Then go through the features: in each of ``rounds``
groups of shards, tasks score every window for all classes in one product and return those that are hard for some class;
these join the caches, the classes that got some are trained again, and what has become easy leaves. At the end every
negative is scored once more: how many violate the margin outside the caches is stored with the SVMs.

A training begins from the coefficients of the one before. Caches and coefficients are committed after each round, from
which a driver that comes later goes on.

The story is told in jobs/svm/driver.py; the tasks that read are in jobs/svm/tasks.py, the one that trains in
jobs/svm/fits.py; jobs/svm/progress.py says what is committed.
"""
