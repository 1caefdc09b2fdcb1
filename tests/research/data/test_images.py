"""Image sets: what loads and what is refused."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from ghnq_quant import DataError
from ghnq_quant.research.data import (
    load_images,
)

ARCHIVE = Path(__file__).parents[4] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def arrays(count: int = 12, size: int = 8, classes: int = 3) -> dict[str, np.ndarray]:
    """The content of a valid .npz."""
    rng = np.random.default_rng(0)
    return {
        f"{key}_{part}": value
        for part in ("train", "test")
        for key, value in (
            ("x", rng.integers(0, 256, (count, size, size, 3), np.uint8)),
            ("y", np.arange(count) % classes),
        )
    }


def saved(path: Path, content: dict[str, np.ndarray]) -> Path:
    np.savez(path, **content)
    return path


def folder(root: Path, classes: tuple[str, ...] = ("ant", "bee"), test: str = "test") -> Path:
    """Two PNGs of 5 × 6 pixels per class and part; the red channel holds a running number."""
    number = 0
    for part in ("train", test):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for index in range(2):
                pixels = np.zeros((6, 5, 3), np.uint8)
                pixels[..., 0] = number
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
                number += 1
    return root


# What loads


def test_digits_are_split_evenly_over_the_classes():
    digits = load_images("digits")
    assert digits.name == "scikit-learn digits"
    assert digits.train.images.shape == (1437, 3, 32, 32)
    assert digits.test.images.shape == (360, 3, 32, 32)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.classes == tuple("0123456789")
    assert digits.test.labels.bincount().min() >= 34
    again = load_images("digits")
    assert torch.equal(again.test.images, digits.test.images)


def test_npz_keeps_every_pixel_and_label(tmp_path):
    content = arrays()
    images = load_images(saved(tmp_path / "mine.npz", content))
    assert images.name == "mine"
    assert images.train.classes == ("0", "1", "2")
    np.testing.assert_array_equal(
        images.test.images.numpy(), content["x_test"].transpose(0, 3, 1, 2)
    )
    np.testing.assert_array_equal(images.train.labels.numpy(), content["y_train"])
    assert load_images(tmp_path / "mine.npz", name="Mine, 2nd edition").name == "Mine, 2nd edition"


@pytest.mark.parametrize("shape", [(12, 8, 8), (12, 8, 8, 1)])
def test_grey_npz_is_repeated_over_the_channels(tmp_path, shape):
    content = arrays()
    for part in ("train", "test"):
        content[f"x_{part}"] = content[f"x_{part}"][..., 0].reshape(shape)
        content[f"y_{part}"] = content[f"y_{part}"][:, None]
    images = load_images(saved(tmp_path / "grey.npz", content)).train
    for channel in range(3):
        np.testing.assert_array_equal(
            images.images[:, channel].numpy(), content["x_train"].reshape(12, 8, 8)
        )


@pytest.mark.parametrize("test", ["test", "val"])
def test_folder_labels_follow_the_alphabet(tmp_path, test):
    images = load_images(folder(tmp_path / "insects", ("bee", "ant"), test))
    assert images.name == "insects"
    assert images.train.classes == ("ant", "bee")
    assert images.train.labels.tolist() == images.test.labels.tolist() == [0, 0, 1, 1]
    assert images.train.images[:, 0, 0, 0].tolist() == [2, 3, 0, 1]
    assert images.test.images.shape == (4, 3, 6, 5)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Six images in CIFAR-10's own files, with torchvision's checksums set to theirs."""
    base = root / "cifar-10-batches-py"
    base.mkdir()
    pixels = np.arange(6 * 3072, dtype=np.int64).reshape(6, 3072) % 251
    pixels = pixels.astype(np.uint8)

    def write(name: str, content: object) -> str:
        payload = pickle.dumps(content)
        (base / name).write_bytes(payload)
        return hashlib.md5(payload).hexdigest()

    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    sums = [
        [name, write(name, {"data": pixels[i : i + 1], "labels": [i]})]
        for i, name in enumerate(names)
    ]
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return pixels.reshape(6, 3, 32, 32)


def test_cifar10_folder_of_torchvision(tmp_path, monkeypatch):
    cache = tmp_path / "ghnq-quant"
    cache.mkdir()
    pixels = write_cifar10(cache, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for images in map(load_images, (cache, cache / "cifar-10-batches-py", "cifar10")):
        assert images.name == "CIFAR-10"
        assert images.train.classes == tuple("abcdefghij")
        np.testing.assert_array_equal(images.train.images.numpy(), pixels[:5])
        np.testing.assert_array_equal(images.test.images.numpy(), pixels[5:])
        assert images.train.labels.tolist() == [0, 1, 2, 3, 4]


def test_cifar10_file_of_another_checksum_is_never_unpickled(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps("else"))
    with pytest.raises(DataError, match="cifar-10-batches-py, or a file there is damaged"):
        load_images(tmp_path)


def test_missing_cifar10_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="download=True"):
        load_images("cifar10")


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"needs {ARCHIVE.name} in ../shared/data")
def test_first_images_of_the_reencoded_cifar10(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        members = [member for member in (archive.next() for _ in range(60)) if member.isfile()]
        contents = [(m.name, archive.extractfile(m).read()) for m in members]
    for part in ("train", "test"):
        for path, payload in contents[:20]:
            file = tmp_path / part / Path(path).parent.name / Path(path).name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(payload)
    images = load_images(tmp_path, name="CIFAR-10 (JPEG re-encoding)")
    first = np.asarray(Image.open(io.BytesIO(sorted(contents[:20])[0][1])).convert("RGB"))
    assert images.train.images.shape[1:] == (3, 32, 32)
    np.testing.assert_array_equal(images.train.images[0].permute(1, 2, 0).numpy(), first)


# What is refused


def spoil(key: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    content = arrays()
    if value is None:
        del content[key]
    else:
        content[key] = value
    return content


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("y_test", None, "lacks y_test; it holds x_train"),
        ("x_train", np.zeros((12, 8, 8, 3), np.float32), "x_train is float32; images must be"),
        ("x_train", np.zeros((12, 3, 8, 8), np.uint8), r"shape \(12, 3, 8, 8\); images must be N"),
        ("x_train", np.zeros((11, 8, 8, 3), np.uint8), "11 training images but 12 labels"),
        ("x_test", np.zeros((0, 8, 8, 3), np.uint8), "the test part is empty"),
        ("x_test", np.zeros((12, 9, 8, 3), np.uint8), "8×8 pixels, test images 9×8"),
        ("y_train", np.arange(12) % 3 - 1, "labels -1, 0, 1; labels must run from 0"),
        ("y_train", np.arange(12) % 3 * 2, "labels 0, 2, 4; labels must run from 0"),
        ("y_train", np.linspace(0, 2, 12), "float64 of shape .*must be N integers"),
        ("y_test", np.arange(12) % 4, "y_test holds the labels 3, which y_train, from 0 to 2"),
        ("y_train", np.array([object()] * 12), "without Python objects"),
    ],
)
def test_wrong_npz_is_refused(tmp_path, key, value, message):
    path = saved(tmp_path / "wrong.npz", spoil(key, value))
    with pytest.raises(DataError, match=message) as error:
        load_images(path)
    assert str(path) in str(error.value)


def test_truncated_damaged_and_foreign_files_are_refused(tmp_path):
    path = saved(tmp_path / "cut.npz", arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    with pytest.raises(DataError, match=r"cut\.npz is no \.npz file, or only the first part"):
        load_images(path)
    path.write_bytes(whole[:1000] + b"damaged" + whole[1007:])
    with pytest.raises(DataError, match=r"cut\.npz cannot be read"):
        load_images(path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"single\.npy is no \.npz"):
        load_images(tmp_path / "single.npy")


def test_missing_path_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no image set at .*nowhere.*give 'digits'"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="needs train/CLASS/ and test/CLASS/"):
        load_images(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="train is empty"):
        load_images(tmp_path)


def test_unreadable_image_is_named(tmp_path):
    broken = folder(tmp_path) / "train" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=r"bee/1\.png cannot be read as an image"):
        load_images(tmp_path)


def one_image(root: Path, image: Image.Image, name: str = "0.png") -> Path:
    """:func:`folder` with another first image."""
    (folder(root) / "train" / "ant" / "0.png").unlink()
    image.save(root / "train" / "ant" / name)
    return root


def test_image_of_16_bits_keeps_its_high_bytes(tmp_path):
    grey = np.arange(30, dtype=np.uint16).reshape(6, 5) * 2184  # 0 to 63336
    data = one_image(tmp_path, Image.fromarray(grey))
    wanted = np.broadcast_to((grey // 256).astype(np.uint8), (3, 6, 5))
    assert np.array_equal(load_images(data).train.images[0], wanted)


def test_opaque_alpha_is_dropped(tmp_path):
    pixels = np.full((6, 5, 4), 255, np.uint8)
    pixels[..., 1] = 7
    data = one_image(tmp_path, Image.fromarray(pixels))
    assert load_images(data).train.images[0, :, 0, 0].tolist() == [255, 7, 255]


def transparent_palette() -> Image.Image:
    image = Image.new("P", (5, 6))
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "name", "message"),
    [
        (Image.new("F", (5, 6), 0.5), "0.tiff", "pixels of the kind 'F'"),
        (Image.new("I", (5, 6), 70000), "0.tiff", "pixels of the kind 'I'"),
        (Image.new("RGBA", (5, 6), (255, 0, 0, 254)), "0.png", "transparent pixels"),
        (transparent_palette(), "0.png", "transparent pixels"),
    ],
)
def test_pixels_without_a_shade_are_refused(tmp_path, image, name, message):
    with pytest.raises(DataError, match=message) as caught:
        load_images(one_image(tmp_path, image, name))
    assert str(tmp_path / "train" / "ant" / name) in str(caught.value)


def test_encrypted_npz_is_refused(tmp_path):
    path = saved(tmp_path / "set.npz", arrays())
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz cannot be read.*password"):
        load_images(path)


def test_npz_that_claims_all_memory_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (2**50, 32, 32, 3)}
                np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match=r"set\.npz cannot be read"):
        load_images(tmp_path / "set.npz")


def test_image_of_another_size_is_named(tmp_path):
    Image.new("RGB", (7, 6)).save(folder(tmp_path) / "test" / "bee" / "0.png")
    with pytest.raises(DataError, match=r"bee/0\.png has 7×6 pixels, .*ant/0\.png has 5×6"):
        load_images(tmp_path)


def test_class_without_images_and_class_in_one_part_are_refused(tmp_path):
    folder(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="different classes: cat only in one"):
        load_images(tmp_path)
    (tmp_path / "test" / "cat").mkdir()
    with pytest.raises(DataError, match="cat holds no image"):
        load_images(tmp_path)


# Batches


def test_normalized_training_part_has_mean_0_and_std_1(tmp_path):
    train = load_images(saved(tmp_path / "a.npz", arrays())).train
    x = train.normalize(train.images).double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3).double())


def test_constant_channel_is_only_centred(tmp_path):
    content = arrays()
    content["x_train"][..., 1] = 7
    train = load_images(saved(tmp_path / "a.npz", content)).train
    assert train.normalize(train.images)[:, 1].abs().max() < 1e-6
