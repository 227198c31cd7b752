import numpy as np

from medclr.evaluation.examples import most_confident_errors


def test_errors_are_the_highest_negatives_and_the_lowest_positives() -> None:
    y = np.array([0, 0, 0, 1, 1, 1, np.nan])
    probability = np.array([0.1, 0.9, 0.6, 0.95, 0.3, 0.5, 0.99])
    found = most_confident_errors(y, probability, 2)
    assert found.false_positives.tolist() == [1, 2]
    assert found.false_negatives.tolist() == [4, 5]
    assert [errors.tolist() for errors in most_confident_errors(y, probability, 9)] == [[1, 2], [4, 5]]


def test_what_is_ranked_rightly_by_every_threshold_is_no_error() -> None:
    assert [len(errors) for errors in most_confident_errors(np.array([0, 0, 1.0]), np.array([0.1, 0.6, 0.7]), 3)] == [
        0,
        0,
    ]
    assert [
        len(errors) for errors in most_confident_errors(np.array([0, 0, np.nan]), np.array([0.1, 0.6, 0.7]), 3)
    ] == [0, 0]
