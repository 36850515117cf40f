import pytest

from labeling.errors import InputError
from labeling.scoring import load_score_function


def function(tmp_path, body):
    path = tmp_path / "rubric.py"
    path.write_text(f"def score(prompts, completions):\n    {body}\n")
    return load_score_function(f"{path}:score")


def test_a_function_of_a_file_scores(tmp_path):
    score = function(tmp_path, "return [len(c) for c in completions]")
    assert score(["p", "p"], ["a", "bcd"]) == [1.0, 3.0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return [1.0]", "returned 1 scores for 2 completions"),
        ("return [1.0, float('nan')]", "returned nan for completion 1"),
        ("return [1.0, 'x']", "returned 'x' for completion 1"),
        ("raise KeyError('k')", "raised KeyError"),
    ],
)
def test_a_function_that_misbehaves_is_told_in_one_line(tmp_path, body, says):
    with pytest.raises(InputError, match=says):
        function(tmp_path, body)(["p", "p"], ["a", "b"])


def test_what_cannot_be_loaded_says_why(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    for reference, says in [
        ("rubric.py", "does not name a function"),
        (f"{tmp_path}/none.py:score", "does not exist"),
        (f"{tmp_path}/broken.py:score", "cannot import"),
        ("json:score", "has no function 'score'"),
        ("no_such_module:score", "cannot import no_such_module"),
    ]:
        with pytest.raises(InputError, match=says):
            load_score_function(reference)
