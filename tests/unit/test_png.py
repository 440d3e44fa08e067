"""PNG files: decoded by Pillow to the same pixels, chunk by chunk as the specification says."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from isal import isal_zlib
from PIL import Image

from ranktapd.render import png
from ranktapd.render.png import encode_png, encoder_fingerprint

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def decoded(encoded: bytes, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as picture:
        assert picture.format == "PNG"
        assert picture.mode == MODES[channels]
        array = np.asarray(picture)
    return array[..., None] if channels == 1 else array


def chunks(encoded: bytes) -> list[tuple[bytes, bytes]]:
    """Every chunk's type and data, once its CRC is found right."""
    assert encoded.startswith(b"\x89PNG\r\n\x1a\n")
    found, position = [], 8
    while position < len(encoded):
        (length,) = struct.unpack_from(">I", encoded, position)
        kind = encoded[position + 4 : position + 8]
        data = encoded[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", encoded, position + 8 + length)
        assert checksum == zlib.crc32(kind + data)
        found.append((kind, data))
        position += 12 + length
    return found


def filter_types(encoded: bytes, row_bytes: int) -> set[int]:
    rows = zlib.decompress(dict(chunks(encoded))[b"IDAT"])
    return set(rows[:: 1 + row_bytes])


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@settings(deadline=None, max_examples=150)
@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4)),
        elements=st.integers(0, 255) | st.sampled_from([0, 127, 128, 255]),
    )
)
def test_any_picture_decodes_to_its_own_pixels(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(encode_png(pixels), pixels.shape[2]), pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (301, 467)])
def test_pictures_of_every_format_decode(size: tuple[int, int], channels: int) -> None:
    height, width = size
    smooth = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.arange(1, 5)
    for pixels in (smooth[..., :channels].astype(np.uint8), noise((height, width, channels))):
        np.testing.assert_array_equal(decoded(encode_png(pixels), channels), pixels)


def test_large_picture_decodes() -> None:
    pixels = np.tile(noise((64, 2048, 3)), (20, 1, 1))
    pixels[::7] = 200
    np.testing.assert_array_equal(decoded(encode_png(pixels), 3), pixels)


def test_file_consists_of_header_data_and_end() -> None:
    pixels = noise((5, 7, 3))
    parts = chunks(encode_png(pixels))
    assert [kind for kind, _ in parts] == [b"IHDR", b"IDAT", b"IEND"]
    assert parts[0][1] == struct.pack(">IIBBBBB", 7, 5, 8, 2, 0, 0, 0)
    assert len(zlib.decompress(parts[1][1])) == 5 * (1 + 7 * 3)


def test_rows_choose_the_filter_that_leaves_less() -> None:
    across = np.repeat(np.cumsum(noise((1, 64, 3), 1), axis=1, dtype=np.uint8), 64, axis=0)
    assert filter_types(encode_png(across[1:]), 64 * 3) <= {1, 2}
    # Each row repeats the one above: Up leaves zeros, in all but the first row.
    rows = zlib.decompress(dict(chunks(encode_png(across)))[b"IDAT"])
    assert set(rows[1 + 64 * 3 :: 1 + 64 * 3]) == {2}
    # Each column repeats the one to its left: Sub leaves zeros.
    assert filter_types(encode_png(np.ascontiguousarray(across.swapaxes(0, 1))), 64 * 3) == {1}


def test_smooth_picture_is_far_smaller_than_its_pixels() -> None:
    y, x = np.mgrid[0:256, 0:256]
    pixels = np.stack([x, y, (x + y) // 2], axis=2).astype(np.uint8)
    assert len(encode_png(pixels)) < pixels.nbytes // 50


def test_noise_hardly_grows() -> None:
    pixels = noise((256, 256, 3))
    assert len(encode_png(pixels)) < pixels.nbytes * 1.01


def test_same_pixels_give_the_same_bytes_whatever_their_memory_order() -> None:
    pixels = noise((40, 50, 3))
    encoded = encode_png(pixels)
    planar = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert encode_png(planar) == encoded
    assert encode_png(np.asfortranarray(pixels)) == encoded
    assert encode_png(noise((40, 100, 3))[:, ::2]) == encode_png(
        np.ascontiguousarray(noise((40, 100, 3))[:, ::2])
    )
    assert encode_png(pixels) == encoded


def test_pixels_are_not_changed() -> None:
    pixels = noise((40, 50, 3))
    pixels.flags.writeable = False
    encode_png(pixels)


def test_fingerprint_follows_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder_fingerprint.cache_clear()
    here = encoder_fingerprint()
    assert len(here) == 8
    for share, every_level in ((0, 1), (2, 2)):
        encoder_fingerprint.cache_clear()
        monkeypatch.setattr(png, "_LEVEL_SHARE", share)
        assert encoder_fingerprint() != here, every_level
    encoder_fingerprint.cache_clear()
    monkeypatch.undo()
    assert encoder_fingerprint() == here


def test_what_has_flat_areas_is_searched_for_repetitions_and_what_has_none_is_not() -> None:
    y, x = np.mgrid[0:64, 0:64]
    photo = ((np.sin(x / 9) + np.cos(y / 7) + 2) * 60 + noise((64, 64)) % 8).astype(np.uint8)
    blobs = np.where(photo > 128, photo, 0).astype(np.uint8)
    for pixels, level in ((photo, 1), (blobs, 2)):
        idat = dict(chunks(encode_png(pixels[..., None])))[b"IDAT"]
        rows = zlib.decompress(idat)
        assert idat == isal_zlib.compress(rows, level) != isal_zlib.compress(rows, 3 - level)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((4, 4, 0), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused_with_its_shape(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"has .*shape"):
        encode_png(pixels)
