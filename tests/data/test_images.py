"""Pictures as people see them: against `transformers.image_utils.load_image` where that is right, else computed."""

from __future__ import annotations

import base64
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image
from support.safety_files import encoded
from support.tiny_mllms import evaluation_records, picture, tiny_llava, training_records
from transformers.image_utils import load_image

from hpa_lightning.data import CVITDataModule, EncodedImage, Record, Task
from hpa_lightning.data.checking import check_stream, summary
from hpa_lightning.data.images import DEEP, FRAMES, TRANSPARENT, TURNED, image_of_cell, kinds_of
from hpa_lightning.data.record import open_image, user_turn


def opened(image: Any) -> np.ndarray:
    found = open_image(image, "r")
    assert found.mode == "RGB"
    return np.asarray(found)


def photo() -> Image.Image:
    """No symmetry, and sides of different length."""
    image = Image.new("RGB", (6, 4), (10, 20, 30))
    image.putpixel((0, 0), (250, 0, 0))
    image.putpixel((5, 0), (0, 250, 0))
    return image


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg", "webp"])
def test_orientation_is_as_load_image_has_it(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, image = tmp_path / f"x.{suffix}", photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    expected = np.asarray(load_image(str(path)))
    assert expected.shape == ((6, 4, 3) if orientation >= 5 else (4, 6, 3))
    for given in (path, str(path), EncodedImage(path.read_bytes()), Image.open(path), Image.open(path).copy()):
        if suffix == "tiff" and isinstance(given, Image.Image) and not hasattr(given, "fp"):
            continue  # PIL's copy of a TIFF file has been turned and still says that it has to be
        np.testing.assert_array_equal(opened(given), expected)
    with Image.open(path) as image:
        assert (TURNED in kinds_of(image, header_only=True)) == (orientation > 1)


def test_a_broken_exif_block_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    photo().save(tmp_path / "x.png", exif=b"Exif\x00\x00no TIFF header")
    np.testing.assert_array_equal(opened(tmp_path / "x.png"), np.asarray(photo()))


def test_images_of_16_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 12).round().astype(np.uint16).reshape(3, 4)
    expected = np.repeat(np.rint(values / 257).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(values).save(tmp_path / "x.png")
    Image.fromarray(values).save(tmp_path / "x.tiff")
    for given in (tmp_path / "x.png", tmp_path / "x.tiff", Image.fromarray(values)):
        np.testing.assert_array_equal(opened(given), expected)
    np.testing.assert_array_equal(opened(Image.fromarray(values.astype(np.int32))), expected)
    big = Image.frombytes("I;16B", (4, 3), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(opened(big), expected)
    assert len(np.unique(np.asarray(load_image(str(tmp_path / "x.png"))))) < 12  # what is mended here


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.2, 0.6, 0.8], [51, 153, 204]),
        ([0.0, 100.0, 200.0], [0, 100, 200]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-1.0, 0.0, 3.0], [0, 64, 255]),
        ([0.0, 5e4, 1e5], [0, 128, 255]),
        ([-2.0, -2.0, -2.0], [0, 0, 0]),
    ],
)
def test_float_images_are_scaled_by_their_range(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "x.tiff")
    np.testing.assert_array_equal(opened(tmp_path / "x.tiff")[0, :, 1], expected)


def test_a_picture_of_values_that_are_not_finite_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=r"^r: image file '.*x\.tiff' cannot be read: .* not finite"):
        open_image(tmp_path / "x.tiff", "r")


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 51, 255]], np.uint8)
    black = np.zeros((1, 3, 3), np.uint8)
    expected = np.repeat((255 - alpha)[..., None], 3, axis=2)
    for name, pixels in (("rgba", np.dstack([black, alpha])), ("la", np.dstack([black[..., 0], alpha]))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(opened(tmp_path / f"{name}.png"), expected)
        with Image.open(tmp_path / f"{name}.png") as image:
            assert kinds_of(image, header_only=True) == [TRANSPARENT]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    for name in ("p.png", "p.gif"):
        assert opened(tmp_path / name).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    grey = Image.fromarray(np.array([[0, 9]], np.uint8))
    grey.save(tmp_path / "key.png", transparency=0)
    assert opened(tmp_path / "key.png")[0, :, 0].tolist() == [255, 9]
    deep = Image.fromarray(np.array([[0, 257 * 9, 257 * 7]], np.uint16))
    deep.save(tmp_path / "deep.png", transparency=257 * 9)
    assert opened(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 255, 7]
    multiplied = Image.fromarray(np.array([[[100, 255], [0, 0]]], np.uint8), "LA").convert("La")
    assert opened(multiplied)[0, :, 0].tolist() == [100, 255]


def test_an_opaque_picture_is_as_load_image_has_it(tmp_path: Path) -> None:
    for mode in ("RGB", "L", "1", "P", "CMYK", "YCbCr", "RGBA"):
        if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 12:
            continue  # Pillow cannot read what it has written
        picture(3).convert(mode).save(tmp_path / "x.tiff")
        np.testing.assert_array_equal(opened(tmp_path / "x.tiff"), np.asarray(load_image(str(tmp_path / "x.tiff"))))


def test_a_large_image_is_refused_by_name_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (13000, 13000)).save(path)
    path.write_bytes(path.read_bytes()[:60])  # a header and no pixels: decoding would fail with other words
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for image in (path, EncodedImage(path.read_bytes(), "large.png")):
            with pytest.raises(
                ValueError, match=r"^t\[3\]: .*large\.png' .*13000 x 13000 pixels are more than .* 0\.5 GB"
            ):
                open_image(image, "t[3]")
    with pytest.raises(ValueError, match=r"^t\[3\]: .* 6 x 4 pixels are more than max_image_pixels=20"):
        open_image(photo(), "t[3]", max_pixels=20)
    assert open_image(photo(), "t[3]", max_pixels=24).size == (6, 4)


def test_a_broken_file_is_one_error_whatever_the_decoder_raises(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for suffix, options in (("png", {}), ("jpg", {}), ("tiff", {}), ("gif", {}), ("webp", {}), ("bmp", {})):
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(1).save(stream, {"jpg": "jpeg"}.get(suffix, suffix), exif=exif, **options)
        whole = np.frombuffer(stream.getvalue(), np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[generator.integers(0, len(whole), 4)] = generator.integers(0, 256, 4)
            cut = int(generator.integers(1, len(whole) + 1))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    open_image(EncodedImage(broken[:cut].tobytes(), f"x.{suffix}"), "r")
                except ValueError as error:
                    assert str(error).startswith("r: the image 'x.") and len(str(error)) < 400


def test_paths_that_no_file_can_have_are_missing(tmp_path: Path) -> None:
    for path in ("x" * 5000, "a\0b", "\ud800.png", str(tmp_path)):
        with pytest.raises(ValueError, match=r"^r: image file "):
            open_image(path, "r")


def test_base64_without_an_address_is_a_picture(tmp_path: Path) -> None:
    """ms-swift, VLMEvalKit and others write it so; a path that begins alike stays one."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "WEBP"):
        file = io.BytesIO()
        image.save(file, kind)
        cell = base64.b64encode(file.getvalue()).decode()
        for written in (cell, f"{cell[:76]}\n{cell[76:]}\n"):
            found = image_of_cell(written, tmp_path, "r")
            assert isinstance(found, EncodedImage) and found.data == file.getvalue()
    for path in ("iVBORw0KGgo.png", "/9j/photographs/of/a/day.jpg", f"R0lGOD/{'a' * 200}.gif"):
        assert image_of_cell(path, tmp_path, "r") == str(tmp_path / path)


def test_a_file_address_may_name_this_machine(tmp_path: Path) -> None:
    for address in ("file:///data/a%20b.png", "file://localhost/data/a%20b.png"):
        assert image_of_cell(address, tmp_path, "r") == "/data/a b.png"


def test_data_check_counts_pictures_of_every_kind(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(tmp_path / "turned.jpg", exif=exif)
    photo().convert("RGBA").save(tmp_path / "clear.png")
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "deep.png")
    photo().save(tmp_path / "moving.gif", save_all=True, append_images=[photo().rotate(90)])
    names = ["turned.jpg", "clear.png", "deep.png", "moving.gif", "turned.jpg"]
    train = [
        Record(str(i), training_records(1)[0].messages, images=(str(tmp_path / name),)) for i, name in enumerate(names)
    ]
    (part, *_) = parts = check_stream(CVITDataModule([Task("a", train, evaluation_records(2))]))
    assert part.kinds == {TURNED: 2, TRANSPARENT: 1, DEEP: 1, FRAMES: 1}
    assert "task a, train: 2 images turned by their EXIF orientation" in summary(parts)
    assert not part.problems


def test_the_limit_of_a_stream_is_its_collators() -> None:
    train = [Record("0", (*user_turn("a", 1), *training_records(1)[0].messages[-1:]), images=(photo(),), source="t[0]")]
    data = CVITDataModule([Task("a", train, evaluation_records(2))], processor=tiny_llava()[1], max_image_pixels=23)
    with pytest.raises(ValueError, match=r"^t\[0\]: .*more than max_image_pixels=23"):
        data.collator.train(train)
    assert "6 x 4" not in summary(check_stream(data, max_pixels=24))


def test_encoded_images_keep_their_size_and_can_be_sent_to_workers(tmp_path: Path) -> None:
    data = encoded(1, "PNG", "RGBA")
    image = EncodedImage(data, "1.png")
    before = dict(vars(image))
    assert open_image(image, "r").mode == "RGB"
    assert vars(image) == before, "nothing decoded is kept"
    again = pickle.loads(pickle.dumps(image))
    assert again == image and str(len(data)) not in repr(image) and "1.png" in repr(image)
    pixels = np.asarray(image)
    assert pixels.dtype == np.uint8 and pixels.shape == (28, 28, 3)
    with pytest.raises(ValueError, match=r"^harm\.parquet\[4\]: the image 'x\.jpg' cannot be decoded: cannot identify"):
        open_image(EncodedImage(b"no image", "x.jpg"), "harm.parquet[4]")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    """PIL would call Ghostscript with what the data file says."""
    path = tmp_path / "a.png"  # the suffix tells PIL nothing
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    for image in (path, EncodedImage(path.read_bytes())):
        with pytest.raises(ValueError, match="EPS is no picture but a program that draws one"):
            open_image(image, "r")


def test_an_address_is_the_file_that_it_names_most_exactly(tmp_path: Path) -> None:
    found = []
    for name in ("1.png", "x/1.png", "a.org/x/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        found.append(image_of_cell("https://a.org/x/1.png", tmp_path, "r"))
    assert found == [str(tmp_path / name) for name in ("1.png", "x/1.png", "a.org/x/1.png")]
