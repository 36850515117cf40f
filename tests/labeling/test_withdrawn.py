from __future__ import annotations

from pathlib import Path
from typing import Any

from labeling.withdrawn import FILE, is_suspicious, note_answers, withdrawn

ANN, BOB = {"email": "Ann@example.org"}, {"email": "bob@example.org"}


def annotation(id_: str, account: Any, **given: Any) -> dict[str, Any]:
    return {"unique_id": id_, "completed_by": account, "was_cancelled": False} | given


def task(key: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"key": key}, "annotations": list(annotations)}


def test_an_answer_that_is_gone_while_its_task_is_there_is_withdrawn(tmp_path: Path) -> None:
    note_answers(tmp_path, [task("a", annotation("1", ANN), annotation("2", BOB))])
    note_answers(tmp_path, [task("a", annotation("2", BOB))])
    now = [task("a", annotation("2", BOB))]
    assert withdrawn(tmp_path, now) == {("a", "ann@example.org")}


def test_an_answer_that_is_given_again_is_not_withdrawn(tmp_path: Path) -> None:
    note_answers(tmp_path, [task("a", annotation("1", ANN))])
    assert withdrawn(tmp_path, [task("a", annotation("9", ANN))]) == set()
    skipped = annotation("9", ANN, was_cancelled=True)
    assert withdrawn(tmp_path, [task("a", skipped)]) == set()


def test_a_task_that_is_gone_takes_nothing_back(tmp_path: Path) -> None:
    note_answers(tmp_path, [task("a", annotation("1", ANN))])
    assert withdrawn(tmp_path, [task("b")]) == set()


def test_the_answer_of_an_account_that_is_gone_is_not_counted_twice(tmp_path: Path) -> None:
    note_answers(tmp_path, [task("a", annotation("1", ANN))])
    assert withdrawn(tmp_path, [task("a", annotation("1", None))]) == set()


def test_a_skip_that_is_gone_was_no_answer(tmp_path: Path) -> None:
    note_answers(tmp_path, [task("a", annotation("1", ANN, was_cancelled=True))])
    assert withdrawn(tmp_path, [task("a")]) == set()


def test_a_damaged_memory_is_begun_anew(tmp_path: Path) -> None:
    note_answers(tmp_path, [task("a", annotation("1", ANN))])
    (tmp_path / FILE).write_bytes(b"[[")
    assert withdrawn(tmp_path, [task("a")]) == set()
    note_answers(tmp_path, [task("a", annotation("1", ANN))])
    assert withdrawn(tmp_path, [task("a")]) == {("a", "ann@example.org")}


def test_second_thoughts_are_not_suspicious_and_a_deletion_of_many_is() -> None:
    anns = [(f"task {n}", "ann") for n in range(20)]
    assert not is_suspicious(anns[:2], of=4)
    assert not is_suspicious(anns[:9], of=100)
    assert is_suspicious(anns[:10], of=100)
    assert is_suspicious([*anns[:2], ("task 0", "bob")], of=1000)
