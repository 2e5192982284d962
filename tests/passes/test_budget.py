"""Choosing under a budget, against trying everything."""

from itertools import product

import numpy as np
import pytest

from planish.passes.budget import front

Parts = list[list[tuple[float, float]]]


def drawn(seed: int, parts: int = 6, options: int = 4) -> Parts:
    chance = np.random.default_rng(seed)
    return [
        [(float(w), float(v)) for w, v in zip(*sizes, strict=True)]
        for sizes in (
            (chance.integers(1, 40, options), chance.exponential(size=options))
            for _ in range(parts)
        )
    ]


def everything(parts: Parts) -> np.ndarray:
    """Weight and value of every way to choose, by brute force."""
    return np.array([np.sum(way, axis=0) for way in product(*parts)])


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_what_trying_everything_finds(seed: int) -> None:
    parts = drawn(seed)
    ways, found = everything(parts), front(parts)
    assert found.exact
    for limit in np.linspace(ways[:, 0].min(), ways[:, 0].max() + 1, 25):
        point, met = found.within_weight(limit)
        assert met
        assert found.values[point] == pytest.approx(ways[ways[:, 0] <= limit, 1].min())
    for limit in np.linspace(ways[:, 1].min() + 1e-9, ways[:, 1].max(), 25):
        point, met = found.within_value(limit)
        assert met
        assert found.weights[point] == pytest.approx(ways[ways[:, 1] <= limit, 0].min())


def test_the_picks_make_the_trade() -> None:
    parts = drawn(9)
    found = front(parts)
    for point in range(len(found.weights)):
        picks = found.picks(point)
        made = np.sum([parts[part][pick] for part, pick in enumerate(picks)], axis=0)
        assert made == pytest.approx((found.weights[point], found.values[point]))


def test_nothing_on_the_front_is_beaten() -> None:
    found = front(drawn(3))
    assert (np.diff(found.weights) > 0).all()
    assert (np.diff(found.values) < 0).all()


def test_an_unmet_budget_gives_the_nearest_there_is() -> None:
    found = front([[(3, 1.0), (5, 0.5)], [(2, 2.0), (9, 0.1)]])
    assert found.within_weight(4) == (0, False)
    assert found.picks(0) == (0, 0)
    point, met = found.within_value(0.2)
    assert (found.picks(point), met) == ((1, 1), False)


def test_with_few_points_trades_are_real_and_nearly_as_good() -> None:
    chance = np.random.default_rng(4)
    parts = [[(w + chance.random(), v) for w, v in one] for one in drawn(4, parts=30)]
    exact, rough = front(parts, points=200_000), front(parts, points=60)
    assert exact.exact
    assert not rough.exact
    assert len(rough.weights) <= 60
    for share in (0.3, 0.5, 0.7):
        limit = exact.weights[0] + share * (exact.weights[-1] - exact.weights[0])
        one, other = (f.values[f.within_weight(limit)[0]] for f in (exact, rough))
        assert one <= other < 1.02 * one
    picks = rough.picks(30)
    made = np.sum([parts[part][pick] for part, pick in enumerate(picks)], axis=0)
    assert made == pytest.approx((rough.weights[30], rough.values[30]))
