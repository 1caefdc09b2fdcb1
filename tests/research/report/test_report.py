"""The report page: self-contained, with the numbers of its runs, and only from readable files."""

from __future__ import annotations

import base64
import math
import re
from html import unescape
from pathlib import Path

import pytest

from ghnq_quant import GhnqError
from ghnq_quant.research.report import write_report
from ghnq_quant.research.runs.history import read_curves
from ghnq_quant.research.runs.journal import Journal
from ghnq_quant.research.table1 import Evaluation, LayerResult, NetworkResult, PrecisionResult
from ghnq_quant.research.table1.tables import table_cells

HISTORY = """step,seconds,loss,top1,lr,grad_norm,failed,val_top1
10,2.5,2.31,0.11,0.001,4.2,0,
20,5.0,nan,0.25,0.001,4.0,0,0.2
30,7.5,2.1,0.3
"""


def network(group: str, index: int, top1: float) -> NetworkResult:
    described = {"low": -1.0, "high": 0.5 + index, "std": 0.3, "kurtosis": 2.5 + index,
                 "mismatch": 1.5, "folded_mismatch": None}  # fmt: skip
    sources = {"predicted": described, "initial": {**described, "kurtosis": 1.8}}
    layers = tuple(LayerResult(f"conv{i}", (4, 1, 3, 3), i == 0, sources) for i in range(2))
    precisions = {
        "float": PrecisionResult(top1, 60.0, 0),
        "W4/A4": PrecisionResult(top1 / 2, 55.0, index, 1e-4, 12.0 + index, 0.1, 3.0 - 40 * index),
        "W2/A2": PrecisionResult(10.0, 50.0, 0, 1e-3, 3.0, None, None),
    }
    return NetworkResult(group, index, 1234567, 128, 1.5, precisions, layers)


def save_run(
    folder: Path, offset: float = 0.0, groups: tuple[str, ...] = ("bn_free", "test")
) -> Path:
    facts = {
        "command": "ghnq evaluate --data 'a <b> & c'",
        "settings": {"precisions": ["float", "W4/A4", "W2/A2"], "batch_size": 64},
        "data": {"name": "true <name>", "images_used": 128, "classes": [str(i) for i in range(10)]},
        "ghn": {"name": "ghnq-cifar10", "provenance": None},
        "versions": {"torch": "2"},
        "device": "cpu",
        "seconds": 3.0,
    }
    networks = [network(g, i, 30.0 + offset + 5 * i) for g in groups for i in range(2)]
    journal = Journal(folder / "networks.jsonl", facts, NetworkResult)
    journal.resume()
    for n in networks:
        journal.append(n)
    Evaluation(facts, tuple(networks)).save(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an evaluation and a history."""
    groups = ("mobile", "wide", "bn_free", "test", "deep")
    folder = save_run(tmp_path_factory.mktemp("reported") / "first", groups=groups)
    (folder / "history.csv").write_text(HISTORY)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report([run], run.parent / "report.html").read_text()


def test_the_page_needs_nothing_beside_it_and_holds_the_numbers(run, page):
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"<(script|link|iframe|object)|@import|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    # 5 splits, 2 precisions, 2 kinds of noise, 4 histograms, 2 curves
    assert len(sources) == 5 + 2 + 2 + 4 + 2
    for source in sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(content).decode()
        assert svg.rstrip().endswith("</svg>")
        assert not re.search(r'(href|src)="(?!#|data:)', svg)
    text = unescape(page)
    evaluation = Evaluation.load(run)
    for metric in ("top1", "top5", "change", "output_snr_db"):
        for row in table_cells(evaluation, metric):
            for cell in row:
                assert f">{cell}<" in text
    assert "a &lt;b&gt; &amp; c" in page
    assert "true &lt;name&gt;" in page
    assert "Networks with logits that are not finite (W4/A4: 5)" in text
    assert ">Test 1<" in text
    assert ">1,234,567<" in text


def test_splits_stand_in_the_papers_order_under_id_and_ood(page):
    head = re.search(r"<thead>.*?</thead>", page, re.S)[0]
    titles = re.findall(r">([^<>]+)</th>", head)
    assert titles == ["ID", "OOD", "Test", "Deep", "Wide", "BN-Free", "MobileNet-like"]
    assert "<th colspan=1>ID</th><th colspan=4>OOD</th>" in head


def test_the_same_runs_make_the_same_page(run, page, tmp_path):
    assert write_report([run], tmp_path / "again.html").read_text() == page


def test_several_runs_are_put_side_by_side(tmp_path):
    runs = [save_run(tmp_path / "a"), save_run(tmp_path / "b", offset=8.0)]
    page = write_report(runs, tmp_path / "report.html").read_text()
    comparison = page[page.index("Comparison") : page.index("a: accuracy")]
    assert ">32.5±2.5; 35.0<" in comparison
    assert ">40.5±2.5; 43.0<" in comparison
    assert comparison.count("<img") == 2


def test_runs_without_a_split_in_common(tmp_path):
    runs = [save_run(tmp_path / "a", groups=("test",)), save_run(tmp_path / "b", groups=("deep",))]
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "share no split" in page


def test_finetuning_runs_of_one_name(tmp_path):
    runs = [tmp_path / "one" / "finetune", tmp_path / "other" / "finetune"]
    for run in runs:
        run.mkdir(parents=True)
        (run / "history.csv").write_text(HISTORY)
    page = write_report(runs, tmp_path / "report.html").read_text()
    for run in runs:
        assert f"{run}: finetuning" in page
    assert page.count("30 steps") == 2
    assert page.count("<img") == 4


def test_history_leaves_out_what_is_no_number(tmp_path):
    (tmp_path / "history.csv").write_text(HISTORY + "40,")
    curves = read_curves(tmp_path / "history.csv")
    assert curves == {
        "loss": [(10.0, 2.31), (30.0, 2.1)],
        "top1": [(10.0, 0.11), (20.0, 0.25), (30.0, 0.3)],
        "val_top1": [(20.0, 0.2)],
    }
    assert all(math.isfinite(v) for points in curves.values() for _, v in points)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(GhnqError, match="no column named step"):
        read_curves(tmp_path / "other.csv")


def test_what_cannot_be_reported(tmp_path):
    run = save_run(tmp_path / "run")
    with pytest.raises(GhnqError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(GhnqError, match="named twice"):
        write_report([run, run], tmp_path / "report.html")
    with pytest.raises(GhnqError, match="holds no finished evaluation"):
        write_report([tmp_path], tmp_path / "report.html")
    lines = (run / "networks.jsonl").read_bytes().splitlines(keepends=True)
    (run / "networks.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(GhnqError, match="differ"):
        write_report([run], tmp_path / "report.html")
    (run / "networks.jsonl").unlink()
    with pytest.raises(GhnqError, match=r"lacks networks\.jsonl"):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
