"""Learning rates over the epochs, by hand."""

import math

import pytest

from deepcluster.schedules import LearningRate


def factors(rate, *moments):
    return [rate.factor(moment) for moment in moments]


def test_constant():
    assert factors(LearningRate(), 0, 0.5, 1000) == [1, 1, 1]


def test_step_after_every_so_many_epochs():
    rate = LearningRate("step", every=3, gamma=0.5)
    assert factors(rate, 0, 2.99, 3, 5.99, 6, 9) == [1, 1, 0.5, 0.5, 0.25, 0.125]


def test_cosine_falls_to_the_floor_and_stays_there():
    rate = LearningRate("cosine", epochs=10, floor=0.2)
    assert factors(rate, 0, 5, 10, 25) == pytest.approx([1, 0.6, 0.2, 0.2])
    assert rate.factor(2.5) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_warmup_rises_in_proportion_before_any_of_them():
    assert factors(LearningRate(warmup=2), 0, 0.5, 1, 2, 3) == [0, 0.25, 0.5, 1, 1]
    cosine = LearningRate("cosine", warmup=2, epochs=10)
    assert factors(cosine, 1, 2, 6, 10) == pytest.approx([0.5, 1, 0.5, 0])


def test_a_step_of_training_has_the_factor_of_its_middle():
    rate = LearningRate(warmup=2)
    assert [rate.in_step(1, step, 4) for step in (1, 2, 3, 4)] == [0.0625, 0.1875, 0.3125, 0.4375]
    assert rate.in_step(2, 1, 4) == 0.5625
    assert rate.in_step(3, 1, 4) == 1


def test_a_cosine_needs_its_length():
    with pytest.raises(ValueError, match="a cosine schedule needs its length in epochs"):
        LearningRate("cosine").factor(0.5)
