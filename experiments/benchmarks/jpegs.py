"""A folder of JPEGs of natural size, made from scikit-learn's files: parts of two photographs, with a handwritten digit on each.

    python -m plain56.experiments.benchmarks.jpegs FOLDER [--per_class=100] [--test_per_class=20]

They have about 500×375 pixels, the average of ImageNet; the class is the digit.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

HEIGHT, WIDTH = 375, 500


def write(folder, per_class, test_per_class, seed=0):
    """Writes `FOLDER/train/DIGIT/N.jpg` and `FOLDER/test/…`; the two splits have no digit's picture in common."""
    from sklearn.datasets import load_digits, load_sample_images

    photographs, digits = load_sample_images().images, load_digits()
    generator = np.random.default_rng(seed)
    for label in track(range(10), "Writing JPEGs", transient=True):
        own = generator.permutation(np.flatnonzero(digits.target == label))
        shares = {"test": own[: len(own) // 4], "train": own[len(own) // 4 :]}
        for split, count in (("train", per_class), ("test", test_per_class)):
            path = Path(folder) / split / str(label)
            path.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                digit = digits.images[shares[split][number % len(shares[split])]]
                image = _picture(photographs[generator.integers(2)], digit / 16, generator)
                cv2.imwrite(str(path / f"{number:05}.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


def _picture(photograph, digit, generator):
    """A random part of a photograph with a large digit at a random place: uint8 [H, W, 3]."""
    height, width = (int(length * generator.uniform(0.9, 1.1)) for length in (HEIGHT, WIDTH))
    scale = generator.uniform(0.7, 1.0)
    rows, columns = (int(length * scale) for length in photograph.shape[:2])
    top, left = (generator.integers(length - part + 1) for length, part in zip(photograph.shape, (rows, columns), strict=False))
    image = cv2.resize(photograph[top : top + rows, left : left + columns], (width, height)).astype(float)
    if generator.integers(2):
        image = image[:, ::-1]
    side = int(height * generator.uniform(0.6, 0.9))
    mask = cv2.resize(digit, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)[..., None]
    top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
    part = image[top : top + side, left : left + side]
    part[:] = part * (1 - mask) + generator.uniform(180, 255, 3) * mask
    return image.astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--per_class", type=int, default=100)
    parser.add_argument("--test_per_class", type=int, default=20)
    options = parser.parse_args()
    write(options.folder, options.per_class, options.test_per_class)
