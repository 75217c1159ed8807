import numpy as np
import pytest
from catboost import CatBoostRegressor

from gateway.prediction.length_model import ObliviousTrees

LEVELS = (0.1, 0.5, 0.9)


def booster(depth=4, trees=30, rows=400, **parameters):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 6)).astype(np.float32)
    X[rng.random(X.shape) < 0.2] = np.nan
    y = np.nan_to_num(X[:, 0]) + rng.normal(size=rows)
    loss = f"MultiQuantile:alpha={','.join(map(str, LEVELS))}"
    fitted = CatBoostRegressor(
        loss_function=loss, iterations=trees, depth=depth, verbose=False, allow_writing_files=False, **parameters
    )
    return fitted.fit(X, y)


@pytest.fixture(scope="module")
def fitted():
    return booster()


def rows_on_borders(trees, count=500):
    """Return rows with missing values and with many inputs on a border or next to it."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(count, 6)).astype(np.float32)
    X[rng.random(X.shape) < 0.2] = np.nan
    for row in X:
        tree, level = rng.integers(len(trees.borders)), rng.integers(trees.borders.shape[1])
        border = trees.borders[tree, level]
        if abs(border) < 1e30:
            sides = (border, np.nextafter(border, np.float32(9.0)), np.nextafter(border, np.float32(-9.0)))
            row[trees.features[tree, level]] = sides[rng.integers(3)]
    return X


def test_predictions_equal_those_of_catboost(fitted):
    trees = ObliviousTrees.of(fitted)
    X = rows_on_borders(trees)
    np.testing.assert_allclose(trees.predict(X), fitted.predict(X), rtol=0, atol=1e-12)


def test_one_row_is_predicted_as_among_others(fitted):
    trees = ObliviousTrees.of(fitted)
    X = rows_on_borders(trees, 5)
    np.testing.assert_array_equal([trees.predict_one(x) for x in X], trees.predict(X))


def test_trees_survive_their_arrays(fitted):
    trees = ObliviousTrees.of(fitted)
    X = rows_on_borders(trees)
    restored = ObliviousTrees.from_arrays(trees.to_arrays())
    np.testing.assert_array_equal(restored.predict(X), trees.predict(X))


def test_trees_that_stop_early_are_padded():
    stunted = booster(depth=6, trees=5, rows=6)
    trees = ObliviousTrees.of(stunted)
    X = rows_on_borders(trees, 50) if trees.borders.size else np.zeros((3, 6), np.float32)
    np.testing.assert_allclose(trees.predict(X), stunted.predict(X), rtol=0, atol=1e-12)


def test_no_rows_give_no_predictions(fitted):
    assert ObliviousTrees.of(fitted).predict(np.empty((0, 6), np.float32)).shape == (0, len(LEVELS))


def test_a_tree_that_is_too_deep_is_an_error():
    with pytest.raises(ValueError, match="levels deep"):
        ObliviousTrees.of(booster(depth=9, trees=2))
