"""What the part "steps" says of a graph that does not compute the same."""

from pathlib import Path

from bench import step_cost


def test_a_graph_that_answers_differently_is_named_so():
    def figures(seconds, cosine):
        return {"seconds": [seconds] * 3, "agreement": {"min_token_cosine": cosine, "max_abs_relative": 0.0}}

    compared = {"grouped": figures(1.0, 1.0), "dense": figures(2.0, 1.0), "transformers": figures(2.0, 0.5)}
    dense, transformers = step_cost._step_rows((140, 252), compared, Path("model.onnx"))
    assert dense.value == 2.0 and dense.note is None
    assert "another answer" in transformers.note and "0.500" in transformers.note
    del compared["transformers"]
    _, failed = step_cost._step_rows((308, 308), compared, "RuntimeError: as it came")
    assert failed.value is None and failed.note == "RuntimeError: as it came"
