"""What a run writes while it runs."""

import json
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

from labeling.records import Completion, Prompt
from ppo.config import PPO
from ppo.decoding import Drawn
from ppo.metrics import METRICS, SAMPLES, SAMPLES_SHOWN, TENSORBOARD, TIMINGS, Journal, describe
from ppo.policy import ActorCritic
from ppo.rewards import Scores
from ppo.rollout import Engine, experience_of, read_rollout

FILES = (METRICS, TIMINGS, SAMPLES)


@pytest.fixture
def rollout(world):
    """Of responses of unequal lengths, under a policy that has left its reference."""
    reference, prompts, responses, scores = world
    generator = torch.Generator().manual_seed(0)
    shape = len(prompts), max(map(len, responses))
    live = torch.arange(shape[1]) < torch.tensor([[len(r)] for r in responses])
    logprobs, entropies, values = (torch.rand(3, *shape, generator=generator) - 1.0) * live
    completions = [Completion(f"answer {i % 5}", finished=i % 3 > 0) for i in range(len(prompts))]
    return read_rollout(
        Engine.of(ActorCritic(reference), reference, torch.float32),
        PPO(),
        prompts,
        Drawn(responses, logprobs, -entropies, values),
        completions,
        Scores(scores, scores - 0.5),
    )


def write(out, rollout, first, last, score=0.0):
    """The iterations from `first` to `last`, as the loop writes them; `score` tells runs apart."""
    prompts = [Prompt(text=f"ask {i}") for i in range(len(rollout.completions))]
    with Journal(out, first - 1) as journal:
        for iteration in range(first, last + 1):
            journal.metrics({"iteration": iteration, "objective/scores": score + iteration})
            journal.timings({"iteration": iteration, "rollout": 0.5})
            journal.samples(iteration, prompts, rollout)
        journal.sync()
        return journal.rows


def iterations(path):
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def board(out, reader=event_accumulator):
    """What TensorBoard would show."""
    found = reader.EventAccumulator(str(out / TENSORBOARD), {"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def test_rows_after_the_checkpoint_are_cut_off(tmp_path, rollout):
    write(tmp_path, rollout, 1, 5)
    rows = write(tmp_path, rollout, 4, 6, score=100.0)
    assert iterations(tmp_path / METRICS) == iterations(tmp_path / TIMINGS) == [1, 2, 3, 4, 5, 6]
    shown = [i for i in range(1, 7) for _ in range(SAMPLES_SHOWN)]
    assert iterations(tmp_path / SAMPLES) == shown
    assert [row["objective/scores"] for row in rows] == [1, 2, 3, 104, 105, 106]


def test_a_run_without_a_checkpoint_begins_its_files_anew(tmp_path, rollout):
    write(tmp_path, rollout, 1, 2)
    write(tmp_path, rollout, 1, 1)
    assert iterations(tmp_path / METRICS) == iterations(tmp_path / TIMINGS) == [1]


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_is_dropped(tmp_path, rollout, left):
    write(tmp_path, rollout, 1, 3)
    whole = {name: (tmp_path / name).read_bytes() for name in FILES}
    write(tmp_path, rollout, 4, 4)
    for name in FILES:
        path = tmp_path / name
        torn = path.read_bytes()[len(whole[name]) :].split(b"\n")[0][:left]
        path.write_bytes(whole[name] + torn)
    Journal(tmp_path, 4).__exit__(None, None, None)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == whole


def test_a_line_torn_inside_a_character_is_dropped(tmp_path, rollout):
    write(tmp_path, rollout, 1, 1)
    path = tmp_path / SAMPLES
    whole = path.read_bytes()
    path.write_bytes(whole + '{"iteration": 2, "response": "日'.encode()[:-1])
    Journal(tmp_path, 2).__exit__(None, None, None)
    assert path.read_bytes() == whole


def test_text_with_other_line_ends_is_kept(tmp_path, rollout):
    odd = [Completion("one\u2028two\x85three\rfour\nfive\x0b", finished=True)] * len(
        rollout.completions
    )
    write(tmp_path, replace(rollout, completions=odd), 1, 2)
    written = (tmp_path / SAMPLES).read_bytes()
    Journal(tmp_path, 2).__exit__(None, None, None)
    assert (tmp_path / SAMPLES).read_bytes() == written


@pytest.mark.parametrize("done", [0, 2])
def test_after_a_resume_each_step_stands_once_in_tensorboard(tmp_path, rollout, done):
    write(tmp_path, rollout, 1, 4)
    write(tmp_path, rollout, done + 1, 6, score=100.0)
    found = board(tmp_path)
    scores = [(e.step, e.value) for e in found.Scalars("objective/scores")]
    assert scores == [(i, i if i <= done else 100 + i) for i in range(1, 7)]
    assert [e.step for e in found.Scalars("time/rollout")] == [1, 2, 3, 4, 5, 6]
    texts = board(tmp_path, plugin_event_accumulator).Tensors("samples/text_summary")
    assert [e.step for e in texts] == [1, 2, 3, 4, 5, 6]


def test_samples_hold_prompt_response_and_score(tmp_path, rollout):
    write(tmp_path, rollout, 1, 1)
    rows = [json.loads(line) for line in (tmp_path / SAMPLES).read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"ask {i}" for i in range(SAMPLES_SHOWN)]
    for i, row in enumerate(rows):
        assert row["response"] == rollout.completions[i].text
        assert row["finished"] == rollout.completions[i].finished
        assert row["score"] == pytest.approx(rollout.raw_scores[i].item())
        assert row["kl"] == pytest.approx(rollout.kl[i].item())


def test_metrics_do_not_see_padding(rollout):
    experience = experience_of(rollout, PPO(), 0.05)
    row = describe(rollout, experience, 0.05)
    padding = 1 - rollout.sequences.mask

    def filled(values):
        return values + 1000.0 * padding * torch.arange(1, values.shape[1] + 1)

    dirty = replace(
        rollout,
        logprobs=filled(rollout.logprobs),
        ref_logprobs=-filled(rollout.ref_logprobs) * padding + rollout.ref_logprobs * (1 - padding),
        values=filled(rollout.values),
    )
    learned = replace(
        experience,
        returns=filled(experience.returns),
        advantages=filled(experience.advantages),
        rewards=filled(experience.rewards),
    )
    assert describe(dirty, learned, 0.05) == row


def test_metrics_are_those_of_the_responses_one_by_one(rollout):
    experience = experience_of(rollout, PPO(), 0.05)
    row = describe(rollout, experience, 0.05)
    lengths = rollout.sequences.response_lengths
    valid = [(i, t) for i, n in enumerate(lengths) for t in range(n)]
    kl = [
        sum((rollout.logprobs[i, t] - rollout.ref_logprobs[i, t]).item() for t in range(n))
        for i, n in enumerate(lengths)
    ]
    mean_kl = sum(kl) / len(kl)
    returns = torch.tensor([experience.returns[at] for at in valid])
    errors = returns - torch.tensor([rollout.values[at] for at in valid])
    expected = {
        "objective/scores": 0.0,
        "objective/scores_std": torch.linspace(-1, 1, 12).std(correction=0).item(),
        "objective/kl": mean_kl,
        "objective/kl_coef": 0.05,
        "objective/non_score_reward": -0.05 * mean_kl,
        "objective/rlhf_reward": -0.5 - 0.05 * mean_kl,
        "val/explained_variance": (1 - errors.var() / returns.var()).item(),
        "response/length": sum(lengths) / 12,
        "response/tokens": sum(lengths),
        "response/finished": 8 / 12,
        "response/distinct": 5 / 12,
    }
    assert min(lengths) < max(lengths)
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-4), name
    assert row["objective/entropy"] == rollout.entropy > 0
    assert set(row) == {*expected, "objective/entropy"}
