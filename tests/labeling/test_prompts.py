import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.config import Prompts
from labeling.errors import InputError
from labeling.prompts import load_prompts, prepare_prompts
from labeling.records import read_prompts

CONFIG = Prompts(path="unused")


def jsonl(path, rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return str(path)


def test_no_prompt_is_in_two_splits_and_none_twice(tmp_path):
    rows = [{"prompt": f"prompt {i % 40}"} for i in range(50)]
    metrics = prepare_prompts(CONFIG, jsonl(tmp_path / "p.jsonl", rows), tmp_path)
    prompts = read_prompts(tmp_path / "prompts.parquet")
    assert len({p.key for p in prompts}) == len(prompts) == 40
    assert (metrics.train, metrics.evaluation, metrics.duplicates) == (36, 4, 10)


def test_a_prompt_in_both_files_is_kept_for_evaluation_alone(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    evaluation = jsonl(tmp_path / "e.jsonl", [{"prompt": "b"}])
    prepare_prompts(CONFIG, source, tmp_path, evaluation)
    found = {p.text: p.split for p in read_prompts(tmp_path / "prompts.parquet")}
    assert found == {"a": "train", "b": "evaluation"}


def test_the_seed_decides_split_and_choice(tmp_path):
    source = jsonl(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(100)])

    def run(seed):
        prepare_prompts(Prompts(path="x", seed=seed, limit=20), source, tmp_path)
        return (tmp_path / "prompts.parquet").read_bytes()

    assert run(1) == run(1) != run(2)


def test_plain_prompts_beside_conversations_are_refused(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": [{"role": "user", "content": "c"}]}]
    with pytest.raises(InputError, match="1 prompts are conversations and 2 are plain"):
        prepare_prompts(CONFIG, jsonl(tmp_path / "p.jsonl", rows), tmp_path)


def test_parquet_and_jsonl_give_the_same_prompts(tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": messages}, {"prompt": [{"role": "user", "content": "yo"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    source = jsonl(tmp_path / "p.jsonl", rows)
    assert load_prompts(str(tmp_path / "p.parquet")) == load_prompts(source)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "ok"}, "{not json"], "line 2: not JSON"),
        ([{"prompt": "ok"}, {"text": "x"}], "line 2: 'prompt' is missing"),
        ([{"prompt": "  "}], "line 1: 'prompt' is empty"),
        ([{"prompt": 3}], "line 1: 'prompt' is int"),
        ([{"prompt": [{"role": "user"}]}], "needs 'role' and 'content'"),
        ([{"prompt": [{"role": "assistant", "content": "x"}]}], "is the assistant's"),
        (["[1]"], "line 1: a row must be an object"),
        ([], "holds no prompts"),
    ],
)
def test_malformed_files_name_the_line(tmp_path, rows, says):
    with pytest.raises(InputError, match=says):
        load_prompts(jsonl(tmp_path / "p.jsonl", rows))


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        load_prompts(str(tmp_path / "p.jsonl"))


def test_missing_files_and_unknown_endings_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_prompts(str(tmp_path / "none.jsonl"))
    (tmp_path / "p.csv").write_text("prompt\nx")
    with pytest.raises(InputError, match=r"only \.jsonl and \.parquet"):
        load_prompts(str(tmp_path / "p.csv"))
