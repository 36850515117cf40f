import hashlib

import pyarrow.parquet as pq

from labeling.records import (
    Candidates,
    Completion,
    Message,
    Prompt,
    Ranking,
    read_candidates,
    read_prompts,
    read_rankings,
    read_task_keys,
    write_candidates,
    write_prompts,
    write_rankings,
)

PLAIN = Prompt(text="Where is my order?")
CHAT = Prompt(messages=(Message("system", "Be kind."), Message("user", "Hi\n<b>")), split="train")


def test_prompts_and_candidates_come_back_as_they_went(tmp_path):
    write_prompts([PLAIN, CHAT], tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == [PLAIN, CHAT]
    candidates = [
        Candidates(PLAIN, (Completion("a"), Completion("", finished=False))),
        Candidates(CHAT, (Completion("é\u202e"), Completion("b"))),
    ]
    write_candidates(candidates, tmp_path / "c.parquet")
    assert read_candidates(tmp_path / "c.parquet") == candidates


def test_keys_stand_beside_candidates_and_are_computed_for_files_without(tmp_path):
    tasks = [Candidates(PLAIN, (Completion("a"),)), Candidates(CHAT, (Completion("b"),))]
    write_candidates(tasks, tmp_path / "c.parquet")
    table = pq.read_table(tmp_path / "c.parquet").drop_columns(["key", "prompt_key"])
    pq.write_table(table, tmp_path / "old.parquet")
    for name in ("c.parquet", "old.parquet"):
        keys, prompt_keys = read_task_keys(tmp_path / name)
        assert keys.to_pylist() == [task.key for task in tasks]
        assert prompt_keys.to_pylist() == [task.prompt.key for task in tasks]
        assert read_candidates(tmp_path / name) == tasks


def test_keys_depend_on_content_alone():
    assert Prompt(text="x").key == Prompt(text="x", split="evaluation").key
    assert Prompt(text="x").key != Prompt(messages=(Message("user", "x"),)).key
    one, two = Completion("1"), Completion("2")
    assert Candidates(PLAIN, (one, two)).key != Candidates(PLAIN, (two, one)).key


def test_rankings_file_is_the_same_bytes_in_any_order(tmp_path):
    first = Ranking("t1", "ann@example.org", ((2, 0), (1,)))
    same = Ranking("t1", "ann@example.org", ((0, 2), (1,)))
    second = Ranking("t0", "bob@example.org", ((0,), (1, 2)), none_acceptable=True)
    write_rankings([first, second], tmp_path / "a.parquet")
    write_rankings([second, same], tmp_path / "b.parquet")
    digests = {
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("a.parquet", "b.parquet")
    }
    assert len(digests) == 1
    assert read_rankings(tmp_path / "a.parquet") == [second, same]
