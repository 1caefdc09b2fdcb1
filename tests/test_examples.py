"""Scripts that measure starts from float weights do not repeat measurements that are on file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ghnq_quant import GhnqError
from ghnq_quant.files import save_json
from ghnq_quant.research.data import load_images

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def low_bits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with instant trainings, whose accuracy is a hundred times the learning rate."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")
    import low_bits

    monkeypatch.setattr(low_bits, "trained", lambda task, images, *_, rate, **__: rate)
    monkeypatch.setattr(low_bits, "accuracy", lambda rate, images: 100 * rate)
    return low_bits


def run(script: Any, output: Path, top1: float = 82.94) -> list[dict[str, Any]]:
    """The lines of resnet8's file."""
    from accuracies import Task

    save_json({"top1": top1, "epochs": 100, "seconds": 8802}, output / "resnet8.json")
    script.measure(Task("resnet8", load_images("digits"), output, output))
    return [json.loads(line) for line in (output / "resnet8.jsonl").read_text().splitlines()]


def test_goes_on_with_what_is_there(low_bits: Any, tmp_path: Path) -> None:
    """It continues with the learning rates of the first run."""
    shutil.copy(RESULTS / "low-bits" / "resnet8.jsonl", tmp_path)
    before = (tmp_path / "resnet8.jsonl").read_text()
    header, *results = run(low_bits, tmp_path)
    assert (tmp_path / "resnet8.jsonl").read_text().startswith(before)
    assert not (tmp_path / "rates").exists()
    assert len(results) == 3 * 3 * 3
    new = results[len(before.splitlines()) - 1 :]
    assert {r["top1"] for r in new if r["start"] == "ghnq"} == {100 * header["rates"]["ghnq"]}
    assert run(low_bits, tmp_path) == [header, *results]
    with pytest.raises(GhnqError, match=r"float\.top1=82\.94 \(now 85\)"):
        run(low_bits, tmp_path, top1=85)


def test_begins_with_the_best_rates(low_bits: Any, tmp_path: Path) -> None:
    header, *results = run(low_bits, tmp_path)
    assert header["rates"] == dict.fromkeys(("float", "ghnq", "pytorch"), 0.3)
    assert {r["top1"] for r in results} == {30.0}
    choice = (tmp_path / "rates" / "resnet8.jsonl").read_text().splitlines()
    assert len(choice) == 1 + 3 * 4


def test_the_page_has_the_table(
    low_bits: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import from_float
    from accuracies import main

    monkeypatch.setattr("sys.argv", ["", "-o", str(RESULTS / "from-float"), "--table"])
    main(from_float.measure, from_float.table)
    page = (ROOT / "docs" / "how-to" / "from_float.md").read_text("utf-8")
    rows = [row for row in capsys.readouterr().out.splitlines() if not row.endswith("– | – | – |")]
    assert "\n".join(rows) in page
