"""What is changed of Pillow, and nowhere else: its limit of an image's pixels, which holds for the whole process."""

from PIL import Image


def pixel_limit() -> int | None:
    """Of half of how many pixels an image may be; None: of any number."""
    return Image.MAX_IMAGE_PIXELS


def set_pixel_limit(number: int | None) -> None:
    """Lets Pillow warn of images of more pixels, and refuse those of more than twice as many."""
    Image.MAX_IMAGE_PIXELS = number
