"""Image bytes to pixels, views of a whole image, and VOC's annotations."""
