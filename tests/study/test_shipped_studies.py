"""Where the package finds a study file: in a checkout, or in an installation."""

from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from hpa_lightning.study import read_study, shipped_studies
from hpa_lightning.study.shipped_studies import shipped_study


def test_in_the_repository_it_is_the_file_there() -> None:
    path = shipped_study("smol")
    assert path == Path(__file__).parents[2] / "studies" / "smol.yaml" and read_study(path).groups


@pytest.mark.parametrize("recorded", ["../../../share/hpa_lightning/smol.yaml", "somewhere/else.py"])
def test_in_an_installation_it_is_the_file_of_the_record_or_beside_the_package(
    recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "lib" / "python3" / "site-packages"
    info = site / "hpa_lightning-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "RECORD").write_text(f"{recorded},,\nhpa_lightning/__init__.py,,\n")
    monkeypatch.setattr(shipped_studies, "_REPOSITORY", tmp_path / "nowhere")
    monkeypatch.setattr(shipped_studies, "distribution", lambda name: PathDistribution(info))
    monkeypatch.setattr(shipped_studies, "get_path", lambda name: str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"the study smol\.yaml is neither in .* nor among the files"):
        shipped_study("smol")
    place = tmp_path / "share" if recorded.startswith("..") else site / "share"
    (place / "hpa_lightning").mkdir(parents=True)
    (place / "hpa_lightning" / "smol.yaml").write_text("title: x\n")
    assert shipped_study("smol").samefile(place / "hpa_lightning" / "smol.yaml")
