"""Files that are not pictures, that are too large, or that the system does not let us read; and files that have changed."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from plain56.data import Pictures, center, load_dataset, read_picture, resize
from plain56.errors import UserError
from tests.fixtures.sets import RGB, load_anew, noise, png, section, write_folder, write_tfds


@contextlib.contextmanager
def no_longer_than(seconds):
    def stop(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def opened(path, **options):
    """A folder or set of TFDS, not read yet."""
    return load_anew(dir=str(path), mode="stream", **RGB, **options)


NO_PICTURES = {
    "folder.png": lambda path: path.mkdir(),
    "link.jpg": lambda path: path.symlink_to("nowhere"),
    "loop.png": lambda path: path.symlink_to(path.name),
    "pipe.png": os.mkfifo,
    "socket.png": lambda path: socket.socket(socket.AF_UNIX).bind(path.name),
    "zero.png": lambda path: path.symlink_to("/dev/zero"),
    "sparse.png": lambda path: (path.touch(), os.truncate(path, 2**40)),
}


@pytest.mark.filterwarnings("ignore:unclosed <socket")
def test_what_has_a_pictures_name_but_is_not_one_is_counted(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path / "train", {"cat": 80, "dog": 80})
    write_folder(tmp_path / "test", {"cat": 1, "dog": 1})
    monkeypatch.chdir(tmp_path / "train" / "cat")  # a socket's path may not be long
    for name, make in NO_PICTURES.items():
        make(Path.cwd() / name)
    (Path.cwd() / ".hidden.png").symlink_to("nowhere")
    with no_longer_than(20):
        split = load_dataset(section(name=f"folder:{tmp_path}", mode="resident", **RGB)).train
    assert len(split.images) == len(split.labels) == 160
    assert f"7 of 167 images in the train split of 'folder:{tmp_path}' cannot be read" in caplog.text
    assert f"{tmp_path}/train/cat/folder.png, {tmp_path}/train/cat/link.jpg, " in caplog.text
    train = opened(tmp_path, name=f"folder:{tmp_path}").train
    with no_longer_than(20):
        unread = {Path(train.name(i)).name for i in range(train.count) if train.decode(i, 3) is None}
    assert unread == set(NO_PICTURES)


def test_most_pictures_have_gone(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 8, "dog": 8})
    (tmp_path / "elsewhere").mkdir()
    for i, file in enumerate(sorted((tmp_path / "pets").rglob("*.png"))):
        file.rename(tmp_path / "elsewhere" / f"{i}.png")
        file.symlink_to(tmp_path / "elsewhere" / f"{i}.png")
    assert len(load_dataset(section(name=f"folder:{tmp_path / 'pets'}", **RGB)).train.labels) == 12
    for i in range(12):
        (tmp_path / "elsewhere" / f"{i}.png").unlink()
    with pytest.raises(UserError, match=r"of 12 images in the train split .* cannot be read: .*; at most 5 %"):
        load_anew(name=f"folder:{tmp_path / 'pets'}", **RGB)


def test_a_class_that_leads_nowhere(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    (tmp_path / "pets" / "hog").symlink_to(tmp_path / "hog")
    with pytest.raises(UserError, match="pets/hog is a link to nothing; it must lead to a folder of pictures"):
        opened(tmp_path, name="folder:pets")
    write_folder(tmp_path, {"hog": 3})
    assert opened(tmp_path, name="folder:pets").train.labels.max() == 2
    (tmp_path / "pets" / "hog").unlink()
    (tmp_path / "pets" / "hog").symlink_to("hog")
    with pytest.raises(UserError, match="pets/hog is a link to nothing"):
        opened(tmp_path, name="folder:pets")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_class_that_may_not_be_read(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    (tmp_path / "pets" / "cat").chmod(0)
    with pytest.raises(UserError, match="cannot be read: Permission denied: .*pets/cat"):
        opened(tmp_path, name="folder:pets")


def fingerprint(path, **options):
    dataset = opened(path, **options)
    assert dataset.train.fingerprint == dataset.test.fingerprint
    return dataset.train.fingerprint


def test_the_fingerprint_is_of_names_sizes_and_times(tmp_path):
    images = {split: noise(4, 4, 4, 3) for split in ("train", "test")}
    write_tfds(tmp_path, "insects", images, {split: [0, 1, 2, 0] for split in images})
    write_folder(tmp_path / "pets", {"cat": 6, "dog": 6})
    write_folder(tmp_path / "apart" / "train", {"cat": 6, "dog": 6})
    write_folder(tmp_path / "apart" / "test", {"cat": 2, "dog": 2})
    files = {"folder:pets": "pets/cat/003.png", "folder:apart": "apart/test/dog/001.png"}
    for name, changing in (files | {"insects": "insects/1.0.0/dataset_info.json"}).items():
        names, times = first = fingerprint(tmp_path, name=name)
        assert fingerprint(tmp_path, name=name) == first
        for part in ({"validation_examples": 2}, {"classes": ("ant", "cat") if name == "insects" else ("dog", "cat")}):
            assert fingerprint(tmp_path, name=name, **part) == first
        shutil.copytree(tmp_path, tmp_path / "copy", copy_function=shutil.copyfile)  # with new times
        assert fingerprint(tmp_path / "copy", name=name)[0] == names
        shutil.rmtree(tmp_path / "copy")
        file = tmp_path / changing
        content = file.read_bytes()
        os.utime(file, ns=(1, 1))
        assert fingerprint(tmp_path, name=name)[0] == names and fingerprint(tmp_path, name=name)[1] != times
        file.write_bytes(content + b"  ")
        assert fingerprint(tmp_path, name=name)[0] != names
        file.write_bytes(content)
        assert fingerprint(tmp_path, name=name)[0] == names
        file.with_name("new.png").write_bytes(content)
        assert fingerprint(tmp_path, name=name)[0] != names
    assert load_dataset(section(mode="stream")).train.fingerprint is None


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("~nosuchuser/x.png", "'~nosuchuser/x.png' cannot be a path: "),
        ("a\0b.png", r"cannot be a path: embedded null"),
        ("x" * 300, "cannot be a path: File name too long"),
        ("pipe", "The picture pipe cannot be read: It is not a regular file"),
        ("/dev/zero", "The picture /dev/zero cannot be read: It is not a regular file"),
        (".", "The picture . cannot be read: Is a directory"),
        ("empty", "empty is empty"),
        ("sparse", "The picture sparse cannot be read: File too large"),
    ],
)
def test_paths_that_are_no_picture(tmp_path, monkeypatch, path, sentence):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("empty").touch()
    Path("sparse").touch()
    os.truncate("sparse", 2**40)
    with no_longer_than(20), pytest.raises(UserError, match=sentence) as raised:
        read_picture(path, 3)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", ["~nosuchuser/x", "a\0b", "x" * 300])
def test_paths_that_are_no_data_set(path):
    for options in ({"name": f"folder:{path}"}, {"name": "folder:x", "dir": path}, {"name": "insects", "dir": path}):
        with pytest.raises(UserError, match="cannot be a path: "):
            load_dataset(section(**options, **RGB))


def claiming(kind, image, width, height):
    """The file of an image whose header claims another size."""
    file = bytearray(cv2.imencode(f".{kind}", image, [cv2.IMWRITE_WEBP_QUALITY, 90] if kind == "webp" else [])[1].tobytes())
    if kind == "png":
        file[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        file[29:33] = zlib.crc32(file[12:29]).to_bytes(4, "big")
    elif kind == "jpg":
        place = file.index(b"\xff\xc0") + 5
        file[place : place + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    else:
        place = file.index(b"\x9d\x01\x2a") + 3
        file[place : place + 4] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return bytes(file)


def test_pictures_of_too_many_pixels(tmp_path):
    """In its own process, since OpenCV reads its bound when it is imported."""
    image = noise(1, 16, 16, 3)[0]
    for kind, side in (("png", 30_000), ("jpg", 30_000), ("webp", 16_383)):
        (tmp_path / f"large.{kind}").write_bytes(claiming(kind, image, side, side))
        (tmp_path / f"small.{kind}").write_bytes(claiming(kind, image, 16, 16))
    program = """
import resource, sys
from plain56.data import Pictures, read_picture
from plain56.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    try:
        print(read_picture(file, 3).shape)
    except UserError as error:
        print(error)
    print(Pictures(1, lambda i: (open(file, "rb").read(), 0), str).decode(0, 3) is None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100 * 1024)
"""
    files = [f"{size}.{kind}" for kind in ("png", "jpg", "webp") for size in ("large", "small")]
    environment = {key: value for key, value in os.environ.items() if key != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")
    done = subprocess.run(
        [sys.executable, "-c", program, *files], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    expected = []
    for kind in ("png", "jpg", "webp"):
        bound = "at most 134217728 pixels are read (OPENCV_IO_MAX_IMAGE_PIXELS)"
        expected += [f"large.{kind} is too large: {bound}.", "True", "(16, 16, 3)", "False"]
    assert done.stdout.splitlines() == [*expected, "True"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (MemoryError("no more"), "no more"),
        (cv2.error("OpenCV: error: (-4:Insufficient memory) Failed to allocate 9 bytes"), "Insufficient memory"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
    ids=str,
)
def test_what_the_system_lacks_is_no_fault_of_a_picture(error, reason):
    def read(i):
        raise error

    with pytest.raises(UserError, match=f"cannot be read for lack of memory, open files or processes .*{reason}"):
        Pictures(1, read, str).decode(0, 3)


def test_images_that_do_not_fit(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    with pytest.raises(UserError, match=r"The train split of .* needs 11175.9 GiB of memory, and .* are free"):
        load_dataset(section(name=f"folder:{tmp_path / 'pets'}", image_size=10**6, mode="resident", **RGB))


def test_a_stripe_is_enlarged_in_its_middle():
    stripe = noise(1, 4, 400, 1)[0]
    whole = cv2.resize(stripe, (1600, 16), interpolation=cv2.INTER_LINEAR)[..., None]
    np.testing.assert_array_equal(center(resize(stripe, 16), 16), whole[:, 792:808])
    assert center(resize(np.zeros((1, 10**6, 3), np.uint8), 224), 224).shape == (224, 224, 3)
    page = noise(1, 40, 4, 3)[0]
    np.testing.assert_array_equal(resize(page, 8), cv2.resize(page, (8, 80), interpolation=cv2.INTER_LINEAR))


def picture_files(folder):
    """Files of all kinds that PIL writes, some of them turned by their EXIF data."""
    from PIL import Image

    smooth = cv2.resize(noise(1, 5, 6, 3)[0], (31, 23), interpolation=cv2.INTER_CUBIC)
    color, turned = Image.fromarray(smooth), Image.Exif()
    turned[0x112] = 6  # the camera was held upright
    seen_through = color.convert("RGBA")
    seen_through.putalpha(Image.fromarray(noise(1, 23, 31)[0]))
    deep = Image.fromarray(smooth[..., 0] * np.uint16(256) + noise(1, 23, 31)[0])
    images = {"color": color, "gray": color.convert("L"), "seen_through": seen_through, "deep": deep}
    images |= {"palette": color.quantize(17), "bits": color.convert("1"), "gray_alpha": seen_through.convert("LA")}
    for name, image in images.items():
        image.save(folder / f"{name}.png", exif=turned if name == "palette" else Image.Exif())
    for name in ("color", "gray"):
        images[name].save(folder / f"{name}.jpg", quality=70)
        images[name].save(folder / f"{name}.webp", quality=70)
    color.convert("CMYK").save(folder / "print.jpg", quality=70)
    for suffix in ("jpg", "webp"):
        color.save(folder / f"turned.{suffix}", quality=70, exif=turned)
    return sorted(folder.iterdir())


def test_an_image_of_pil_is_what_its_file_is(tmp_path):
    from PIL import Image

    for path in picture_files(tmp_path):
        for channels in (1, 3):
            expected = read_picture(path, channels)
            with Image.open(path) as image:
                found = read_picture(image, channels)
                np.testing.assert_array_equal(found, expected, err_msg=path.name)
                image.load()
                loaded = read_picture(image, channels)
            assert found.shape == ((31, 23, channels) if path.stem in ("turned", "palette") else (23, 31, channels))
            # Once decoded, a JPEG's own gray is gone, and ink has been mixed by PIL.
            few = 6 * (path.suffix == ".jpg" and (channels == 1 or path.stem == "print"))
            assert np.abs(loaded.astype(int) - expected).max() <= few, path.name


def test_arrays_are_pictures(tmp_path):
    color, gray = noise(1, 4, 5, 3)[0], noise(1, 4, 5)[0]
    (tmp_path / "color.png").write_bytes(png(color))
    np.testing.assert_array_equal(read_picture(color, 3), read_picture(tmp_path / "color.png", 3))
    for picture in (gray, gray[..., None]):
        np.testing.assert_array_equal(read_picture(picture, 1), gray[..., None])
        np.testing.assert_array_equal(read_picture(picture, 3), np.stack([gray] * 3, axis=-1))


@pytest.mark.parametrize(
    ("picture", "given"),
    [
        (np.zeros((4, 5, 3), np.float32), "float32 [4, 5, 3]"),
        (np.zeros((3, 4, 5), np.uint8), "uint8 [3, 4, 5]"),
        (np.zeros((2, 4, 5, 3), np.uint8), "uint8 [2, 4, 5, 3]"),
        (np.zeros((0, 5, 3), np.uint8), "uint8 [0, 5, 3]"),
        (np.zeros(4, np.uint8), "uint8 [4]"),
        (None, "a value of type NoneType"),
        (b"picture.png", "a value of type bytes"),
        ([[0, 1], [2, 3]], "a value of type list"),
    ],
    ids=str,
)
def test_what_is_no_picture_costs_a_sentence(picture, given):
    with pytest.raises(UserError) as raised:
        read_picture(picture, 3)
    kinds = "a path, an image of PIL, or an array uint8 [H, W], [H, W, 1] or [H, W, 3] (RGB)"
    assert str(raised.value) == f"A picture must be {kinds}, not {given}."


def test_an_image_of_pil_that_is_cut_off_costs_a_sentence(tmp_path):
    from PIL import Image

    path = tmp_path / "cut.png"
    path.write_bytes(png(noise(1, 40, 40, 3)[0])[:300])
    with Image.open(path) as image, pytest.raises(UserError, match=r"The picture .*cut\.png cannot be read: "):
        read_picture(image, 3)


def test_a_picture_is_read_from_home(tmp_path, monkeypatch):
    image = noise(1, 4, 4, 3)[0]
    (tmp_path / "picture.png").write_bytes(png(image))
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_array_equal(read_picture("~/picture.png", 3), image)
