import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from plain56.data.augment import augment, normalize


def augmented(images, **options):
    """The images after augmentation with only these options."""
    none = {"pad": 0, "enlarge": (), "area": (), "flip": False, "color": 0.0}
    return np.asarray(augment(jnp.asarray(images), jax.random.key(0), ConfigDict(none | options)))


def test_shifted_images_are_crops_of_the_padded_ones():
    images = np.random.default_rng(0).integers(1, 256, (64, 6, 5, 3), dtype=np.uint8)
    shifted = augmented(images, pad=2)
    offsets = set()
    for image, result in zip(images, shifted, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        found = [(i, j) for i in range(5) for j in range(5) if (padded[i : i + 6, j : j + 5] == result).all()]
        assert len(found) == 1
        offsets.update(found)
    assert {i for i, _ in offsets} == {j for _, j in offsets} == set(range(5))


def test_flip_mirrors_about_half_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 1), dtype=np.uint8)
    flipped = augmented(images, flip=True)
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((flipped == images).all(axis=(1, 2, 3)) | mirrored).all()
    assert 150 < mirrored.sum() < 250


def ramps(count, height, width):
    """Images whose two channels are the row and the column."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.broadcast_to(np.stack([rows, columns], -1).astype(np.uint8), (count, height, width, 2))


@pytest.mark.parametrize("options", [{"enlarge": (1.5, 3.0)}, {"area": (0.1, 0.6)}], ids=str)
def test_crops_have_the_sizes_asked_for(options):
    height, width = 40, 60
    crops = augmented(ramps(300, height, width), **options)
    assert crops.shape == (300, height, width, 2)
    # Away from the clamped edges a bilinear ramp is a ramp: its slope is the crop's share, and its ends are inside the image.
    shares = (crops[:, 30, 30] - crops[:, 10, 10]) / 20
    centered = crops[:, [10, 30], [10, 30]] - (np.array([[10, 10], [30, 30]]) + 0.5) * shares[:, None] + 0.5
    assert (centered.min() > -1e-3) and ((centered[:, 0] + shares * [height, width]) < np.array([height, width]) + 1e-3).all()
    if "enlarge" in options:
        np.testing.assert_allclose(shares[:, 0], shares[:, 1], atol=1e-4)
        factors = 1 / shares[:, 0]
        assert 1.5 <= factors.min() < 1.6 and 2.9 < factors.max() <= 3.0001
    else:
        areas, ratios = shares.prod(axis=1), shares[:, 0] / shares[:, 1]
        assert 0.0999 < areas.min() < 0.12 and 0.58 < areas.max() < 0.6001
        assert 0.749 < ratios.min() < 0.78 and 1.29 < ratios.max() < 1.334


def test_a_crop_of_everything_is_the_image():
    images = np.random.default_rng(0).integers(0, 256, (3, 7, 5, 3), dtype=np.uint8)
    np.testing.assert_allclose(augmented(images, enlarge=(1.0, 1.0)), images, atol=1e-3)


def test_colors_move_along_the_principal_components():
    images = np.full((4000, 1, 1, 3), 100, np.uint8)
    moves = (augmented(images, color=0.1) - 100).reshape(-1, 3) / 255
    deviations, components = np.linalg.eigh(np.cov(moves.T))
    # fb.resnet.torch's eigenvalues and its first eigenvector.
    np.testing.assert_allclose(np.sqrt(deviations[::-1]), 0.1 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.05)
    np.testing.assert_allclose(np.abs(components[:, -1]), [0.5675, 0.5808, 0.5836], atol=0.01)


def test_normalize_by_channel():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    result = normalize(jnp.asarray(images), (0.5, 0.2, 0.0), (0.25, 1.0, 2.0))
    np.testing.assert_allclose(result.ravel(), [-2.0, 0.0, 0.5], atol=1e-7)
