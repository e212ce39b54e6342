"""The tf.data side of `stream_throughput.py`, run by an interpreter that has TensorFlow and nothing of ours."""

import sys
from pathlib import Path

import tensorflow as tf
from turns import serve


def main(folder, *numbers):
    """Reads `batches` batches in each turn."""
    batch, batches, least, most, size = map(int, numbers)
    files = sorted(map(str, Path(folder).glob("train/*/*.jpg")))

    def crop(path):
        encoded = tf.io.read_file(path)
        shape = tf.image.extract_jpeg_shape(encoded)[:2]
        side = tf.cast(tf.reduce_min(shape), tf.float32) * size / tf.random.uniform((), least, most)
        side = tf.cast(side, tf.int32)
        start = tf.cast(tf.random.uniform((2,)) * tf.cast(shape - side + 1, tf.float32), tf.int32)
        # Decodes only this part.
        image = tf.image.decode_and_crop_jpeg(encoded, tf.concat([start, [side, side]], 0), channels=3)
        return tf.cast(tf.image.resize(image, (size, size)), tf.uint8)

    def read():
        order = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat().take(batch * batches)
        for _ in order.map(crop, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE):
            pass

    serve({"tensorflow": tf.__version__}, {"read": read})


if __name__ == "__main__":
    main(*sys.argv[1:])
