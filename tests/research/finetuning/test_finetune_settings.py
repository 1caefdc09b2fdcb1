"""Settings of a run: schedules, the command line for them, and contradictions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ghnq_quant import GhnqError, SchemeError
from ghnq_quant.research.finetuning import FinetuneSettings
from ghnq_quant.research.finetuning.settings import (
    ALL_ARCHITECTURES,
    parse_architectures,
    parse_bits,
    parse_image_sizes,
    parse_macs,
)


def test_the_papers_schedule() -> None:
    settings = FinetuneSettings.paper(epochs=100)
    assert settings.total_steps(50_000) == 156_250
    assert [settings.lr_at(0, f) for f in (0, 0.7499, 0.75, 1)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4]
    )
    assert (settings.betas, settings.weight_decay, settings.clip) == ((0.9, 0.999), 1e-5, 5)


def test_the_recipes_schedule() -> None:
    settings = FinetuneSettings(steps=10_000)
    assert settings.lr_at(0, 0) == pytest.approx(2e-6)
    assert settings.lr_at(499, 0.05) == pytest.approx(1e-3)
    rates = [settings.lr_at(5000, f) for f in (0.5, 0.8999, 0.95, 1)]
    assert rates == pytest.approx([2e-3, 2e-3, 1e-3, 0])
    assert [settings.image_size_at(f) for f in (0, 0.6999, 0.7, 1)] == [16, 16, 32, 32]
    assert [settings.max_macs_at(f) for f in (0, 0.7, 1)] == [6_000_000, 10_000_000, 10_000_000]
    assert [settings.known_architectures(s) for s in (0, 4, 10**6)] == [1000, 1001, 3000]


def test_a_run_without_an_end_may_be_made_longer() -> None:
    constant = FinetuneSettings(
        minutes=5, schedule="constant", image_sizes=((32, 1.0),), max_macs=((None, 1.0),)
    )
    assert constant.open_ended() == replace(constant, minutes=None, steps=9).open_ended()
    decayed = FinetuneSettings(minutes=5)
    assert decayed.open_ended() != replace(decayed, minutes=6).open_ended()


def test_command_line_forms() -> None:
    assert parse_macs("2.5M@0.25,all") == ((2_500_000, 0.25), (None, 1.0))
    with pytest.raises(GhnqError, match=r"10M"):
        parse_macs("5@0.5")
    assert parse_architectures("all") == ALL_ARCHITECTURES
    for wrong in ("0", "many", "-3"):
        with pytest.raises(GhnqError, match="architectures"):
            parse_architectures(wrong)
    assert parse_bits("8,4,2") == ((8, 8), (4, 4), (2, 2))
    assert parse_bits("float, 4/8") == ((32, 32), (4, 8))
    assert parse_image_sizes("16@0.5,32") == ((16, 0.5), (32, 1.0))
    for wrong in ("4/", "x", "1", "4/8/2"):
        with pytest.raises(SchemeError):
            parse_bits(wrong)
    with pytest.raises(GhnqError):
        parse_image_sizes("small")


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": None},
        {"epochs": 1},
        {"steps": 0},
        {"checkpoint_every": 15, "log_every": 10},
        {"image_sizes": ((32, 0.5),)},
        {"max_macs": ((None, 0.5),)},
        {"average": 1.0},
    ],
)
def test_settings_that_contradict_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(GhnqError):
        replace(FinetuneSettings(steps=10), **wrong)
