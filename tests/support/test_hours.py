"""The estimate of a run's hours (support/hours.py), beside figures worked out by hand."""

from dataclasses import replace

import pytest

from support import hours
from support.settings import PRESETS
from tools import plan


@pytest.mark.parametrize(
    "card, size, preset, minutes",
    [
        # Arithmetic made without this code: an iteration of 2B takes so long.
        ("NVIDIA H100 80GB HBM3", 85e9, "1x80gb", (21, 50)),
        ("NVIDIA A100-SXM4-80GB", 85e9, "1x80gb", (49, 103)),
        ("NVIDIA GeForce RTX 4090", 25.2e9, "1x24gb", (102, 210)),
    ],
)
def test_an_iteration_of_2b(card, size, preset, minutes):
    settings = replace(PRESETS[preset][0], model="Qwen2-VL-2B")
    network = plan.measure(plan.read_config("Qwen2-VL-2B"))
    slots = plan.fitting(plan.needs(settings, network, 1), size)
    found = hours.phases(settings, network, plan.work(settings), slots, card)
    low, high = (sum(pair[end] for pair in found.values()) / 60 for end in (0, 1))
    # The ranges overlap by most of the one by hand, and ours is not so wide that it says nothing.
    assert low <= minutes[0] and high >= 0.8 * minutes[1] and high < 7 * low
    assert set(found) == set("PCS") and all(0 < a < b for a, b in found.values())
    # Fewer slots take longer, two cards half as long.
    fewer = hours.phases(settings, network, plan.work(settings), slots // 4, card)
    assert fewer["P"][0] > 1.2 * found["P"][0]
    two = hours.phases(settings, network, plan.work(settings), slots, card, gpus=2)
    assert two["S"][1] == pytest.approx(found["S"][1] / 2)
    assert hours.phases(settings, network, plan.work(settings), slots, "Tesla V100") == {}


def test_what_a_phase_took_corrects_the_rest(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(hours.time, "perf_counter", lambda: now[0])
    clock = hours.Clock({"P": (600, 1200), "C": (300, 600), "S": (600, 1200)}, iterations=2)
    now[0] = 1800.0  # twice the middle of the estimate
    said = clock.finish(1, "proposer")
    assert said.startswith("phase P took 30 minutes (10 to 20 estimated); what is left of the run")
    assert said.endswith("about 1.5 to 2.5 hours")
    now[0] += 900
    clock.finish(1, "coder")
    now[0] += 1800
    # All are measured: one more iteration takes as long.
    assert clock.finish(1, "solver").endswith("about 75 to 75 minutes")
    # What is measured between the phases is no part of one.
    now[0] += 600
    assert clock.finish(1, "eval") == ""
    now[0] += 1800
    assert clock.finish(2, "proposer").startswith("phase P took 30 minutes")
    clock.finish(2, "coder")
    assert "what is left" not in clock.finish(2, "solver")
