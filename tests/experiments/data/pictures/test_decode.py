"""Pictures of a folder are read as a viewer shows them; other files are counted."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data import load, load_rows
from experiments.data.pictures.decode import decode, decode_as_shown

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""EXIF orientation -> expected conversion of the stored pixels (Exif 2.3, tag 274)."""


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(orientation, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    smooth = np.kron(COLOUR[:3, :2], np.ones((16, 16, 1), np.uint8))  # JPEG is lossy
    options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
    Image.fromarray(smooth).save(path, exif=exif(orientation), **options)
    shown, notes = decode_as_shown(path)
    expected = ORIENTATIONS[orientation](smooth)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).max() <= (6 if suffix == "jpg" else 0)
    assert bool(notes) == (orientation > 1)


@pytest.mark.parametrize("broken", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_unreadable_exif_is_ignored(broken, tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=broken)
    np.testing.assert_array_equal(decode_as_shown(tmp_path / "a.png").pixels, COLOUR)


def over_white(values, alpha):
    """Composite on white with Porter and Duff's "over", in [0, 255]."""
    alpha = np.asarray(alpha, float) / 255
    return np.asarray(values, float) * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("alpha", [0, 1, 128, 254, 255])
@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "tga"])
def test_transparent_colours_are_composited_on_white(alpha, suffix, tmp_path):
    pixels = np.dstack([COLOUR, np.full((6, 4), alpha, np.uint8)])
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **options)
    shown, notes = decode_as_shown(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(shown, over_white(COLOUR, alpha), atol=1)
    assert notes == ([] if alpha == 255 else ["with transparency, on white"])


def test_every_kind_of_transparency_is_composited(tmp_path):
    grey = np.array([[0, 100], [200, 250]], np.uint8)
    alpha = np.array([[0, 255], [128, 0]], np.uint8)
    expected = over_white(grey, alpha)
    Image.fromarray(np.dstack([grey, alpha]), "LA").save(tmp_path / "la.png")
    shown = decode_as_shown(tmp_path / "la.png").pixels
    assert shown.shape == (2, 2, 1)
    np.testing.assert_allclose(shown[..., 0], expected, atol=1)

    palette = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    palette.putpalette([9, 9, 9, 10, 20, 30, 200, 100, 0, 5, 5, 5])
    palette.save(tmp_path / "p.png", transparency=bytes([0, 255, 128, 0]))
    shown = decode_as_shown(tmp_path / "p.png").pixels
    expected = [[[255] * 3, [10, 20, 30]], [over_white([200, 100, 0], 128), [255] * 3]]
    np.testing.assert_allclose(shown, expected, atol=1)
    palette.save(tmp_path / "p.gif", transparency=0)
    shown = decode_as_shown(tmp_path / "p.gif").pixels
    np.testing.assert_array_equal(shown[0], [[255] * 3, [10, 20, 30]])

    Image.fromarray(grey).save(tmp_path / "l.png", transparency=100)  # tRNS: one grey level
    shown = decode_as_shown(tmp_path / "l.png").pixels[..., 0]
    np.testing.assert_array_equal(shown, [[0, 255], [200, 250]])
    rgb = np.dstack([grey] * 3)
    Image.fromarray(rgb).save(tmp_path / "rgb.png", transparency=(200, 200, 200))
    shown = decode_as_shown(tmp_path / "rgb.png").pixels[..., 0]
    np.testing.assert_array_equal(shown, [[0, 100], [255, 250]])


def test_one_bit_and_inverted_cmyk_pictures_have_their_colours(tmp_path):
    bits = np.array([[True, False], [False, True]])
    Image.fromarray(bits).save(tmp_path / "bits.png")
    shown = decode_as_shown(tmp_path / "bits.png").pixels[..., 0]
    np.testing.assert_array_equal(shown, 255 * bits)
    colours = np.zeros((32, 32, 3), np.uint8) + np.array([200, 50, 20], np.uint8)
    for suffix in ("jpg", "tif"):  # a CMYK JPEG stores Adobe's inverted values, a TIFF does not
        Image.fromarray(colours).convert("CMYK").save(tmp_path / f"cmyk.{suffix}")
        shown = decode_as_shown(tmp_path / f"cmyk.{suffix}").pixels
        np.testing.assert_allclose(shown, colours, atol=6)


def test_first_of_several_frames_is_read_and_counted(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    for suffix in ("gif", "tif", "webp", "mpo", "png"):
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].convert("RGB").save(
            tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options
        )
    dataset = load(f"folder:{tmp_path}", num_validation=0)
    for part in (dataset.train, dataset.test):
        np.testing.assert_allclose(part, 10, atol=2)
    assert "5 with several frames, of which the first is taken" in dataset.about


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pictures_of_other_numbers_are_named(mode, tmp_path):
    Image.new(mode, (4, 4)).save(tmp_path / "deep.tif")
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"deep.tif .pixels are not 8-bit or 16-bit, bu") as error:
        load(f"folder:{tmp_path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big endian.tif", "a.pgm", "a.jp2"])
def test_grey_levels_of_16_bits_are_cut_to_8_and_counted(name, tmp_path):
    values = np.array([[0, 255, 256], [0x1234, 0xABCD, 0xFFFF]], np.uint16)
    if name == "a.pgm":
        header = b"P5 3 2 65535\n"
        (tmp_path / name).write_bytes(header + values.astype(">u2").tobytes())
    elif name == "big endian.tif":
        image = Image.frombytes("I;16B", (3, 2), values.astype(">u2").tobytes())
        image.save(tmp_path / name)
    else:
        Image.fromarray(values).save(tmp_path / name)
    shown, notes = decode_as_shown(tmp_path / name)
    np.testing.assert_array_equal(shown[..., 0], values >> 8)
    assert notes == ["of 16 bits a channel, cut to 8"]


def test_transparent_grey_level_of_16_bits_is_white(tmp_path):
    values = np.array([[0x1234, 0xABCD]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=0x1234)
    shown, notes = decode_as_shown(tmp_path / "a.png")
    np.testing.assert_array_equal(shown[0, :, 0], [255, 0xAB])
    assert "with transparency, on white" in notes


def test_colours_of_16_bits_are_cut_to_8_and_counted(tmp_path):
    values = np.array([[0x1234, 0xABCD, 0xFF00]], ">u2").reshape(1, 1, 3)
    (tmp_path / "deep.png").write_bytes(_png_16(values))
    shown, notes = decode_as_shown(tmp_path / "deep.png")
    np.testing.assert_array_equal(shown[0, 0], [0x12, 0xAB, 0xFF])
    assert notes == ["of 16 bits a channel, cut to 8"]


def _png_16(values):
    """Encode a 16-bit RGB PNG, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width, _ = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def test_every_suffix_is_read_in_any_case(tmp_path):
    names = ["a.png", "b.JPG", "c.jpeg", "d.WebP", "e.tif", "f.TIFF", "g.bmp", "h.gif", "i.ppm",
             "j.tga", "k.pcx", "l.jfif", "m.pgm", "n.ico"]  # fmt: skip
    for name in names:
        options = {"sizes": [(16, 16)]} if name == "n.ico" else {}
        Image.new("RGB", (16, 16), (40, 40, 40)).save(tmp_path / name, **options)
    rows = load_rows(f"folder:{tmp_path}")
    assert list(rows.files) == names
    np.testing.assert_allclose(rows.examples, 40, atol=2)
    assert "left out" not in rows.about


def test_files_that_are_left_out_are_counted_by_kind(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for name in ("b.txt", "c.TXT", "Thumbs.db", "LICENSE", ".DS_Store", "._a.png", "x.a b", "x.eps",
                 "x.pdf", "x.mpg"):  # fmt: skip
        (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    about = load_rows(f"folder:{tmp_path}").about
    assert ", 1 row; " in about
    assert "10 files left out: " in about
    for kind in ("2 .txt", "1 .db", "1 without a suffix", "2 hidden", "1 others", "1 .eps",
                 "1 .pdf", "1 .mpg"):  # fmt: skip
        assert kind in about


def test_entries_beside_the_splits_are_listed(tmp_path):
    names = ["train/a.png", "test/a.png", "extra/a.png", "b.png", *(f"{i}.txt" for i in range(5))]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name, "png")
    about = load(f"folder:{tmp_path}", num_validation=0).about
    assert (
        "left out, as beside train, test: '0.txt', '1.txt', '2.txt', '3.txt', '4.txt' and 2 more"
        in about
    )


def test_postscript_with_the_suffix_of_a_picture_starts_no_other_program(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.check_call", lambda *args, **_: started.append(args))
    monkeypatch.setattr("subprocess.run", lambda *args, **_: started.append(args))
    contents = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(contents)
    with pytest.raises(ValueError, match=r"1 of 1 are not: .*a.png .cannot identify"):
        load(f"folder:{tmp_path}")
    assert not started


@pytest.mark.parametrize("contents", [b"", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0", b"nonsense"])
def test_broken_picture_is_named(contents, tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "broken.webp").write_bytes(contents)
    with pytest.raises(ValueError, match=r"1 of 2 are not: .*broken.webp \(") as error:
        load(f"folder:{tmp_path}")
    assert "\n" not in str(error.value)


def test_sizes_of_rotated_pictures_are_compared_as_shown(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    turned = Image.fromarray(np.ascontiguousarray(COLOUR.swapaxes(0, 1)))
    turned.save(tmp_path / "b.png", exif=exif(6))
    dataset = load_rows(f"folder:{tmp_path}")
    assert dataset.examples.shape == (2, 6, 4, 3)
    assert "1 turned as their EXIF orientation says" in dataset.about
    turned.save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"must have one size"):
        load_rows(f"folder:{tmp_path}")


def test_decode_returns_the_stored_pixels():
    """As in other readers of prepared data sets, pixels are neither rotated nor composited."""
    file = io.BytesIO()
    pixels = np.dstack([COLOUR, np.full((6, 4), 7, np.uint8)])
    Image.fromarray(pixels).save(file, "png", exif=exif(3))
    np.testing.assert_array_equal(decode(file, "RGBA"), pixels)
    np.testing.assert_array_equal(decode(file, "RGB"), COLOUR)


def test_folder_of_one_picture_is_enough_for_its_rows(tmp_path: Path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_rows(f"folder:{tmp_path}").examples[0], COLOUR)
    with pytest.raises(ValueError, match=r"at least two examples"):
        load(f"folder:{tmp_path}")
