"""classify: whole images by linear SVMs on the layers of a network (paper 3.2 and 3.3, Tables 6 and 7).

    spp classify --config configs/caltech101.yaml --root /data/spp --set dataset.path=/data/101_ObjectCategories

The story: actors show every image to the body once per view, and store each layer of each view in ``image_features``.
The products of all images' vectors are then computed once per layer and view, and serve every split and every class:
an SVM whose examples are fewer than its dimensions sees nothing else of them. Layers and views are tasks side by side;
the classes of a split, milliseconds each, are shared out to a task's threads. What was predicted stands in
``image_scores``, what was measured in ``classification``.

Protocols: ``voc07``, one SVM per class, average precision on the test splits; ``caltech101``, 30 images of each class
to train on and at most 50 to test on, in 10 random splits, mean class accuracy; ``folder``, the same with all others to
test on, or with the data set's own splits where it has some.

The driver is jobs/classify/driver.py, the actor jobs/classify/actor.py.
"""
