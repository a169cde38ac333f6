"""What can be wrong with an input: the errors that become ledger rows instead of stopping a run."""


class ContentError(ValueError):
    """One image, or its annotation, cannot be used; every other image can.

    The message names what is wrong, what is allowed and the remedy. The caller adds the image id and the file.
    """


class ImageError(ContentError):
    """The bytes are not an image that can be read whole."""


class AnnotationError(ContentError):
    """The annotation is not what its format prescribes."""


class ProposalError(ContentError):
    """The proposal method gave no boxes for this image."""


class BodyError(ContentError):
    """The convolutional body gave no usable map for this image."""
