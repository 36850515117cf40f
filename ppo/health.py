"""Signs that a run goes wrong, each named with its likely cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ppo.config import PPO

Row = Mapping[str, float]


def warnings_of(rows: Sequence[Row], config: PPO) -> dict[str, str]:
    """What is wrong in the newest of the rows of metrics, by a name for each sign."""
    first, now = rows[0], rows[-1]
    found = {}
    if now["objective/kl"] < -1.0:
        found["negative KL"] = (
            f"the KL to the reference is {now['objective/kl']:.2f} nats, and a true KL is never "
            "negative: responses are drawn from another distribution than is trained (precision?)"
        )
    elif now["objective/kl"] > 25.0 and now["objective/kl"] > 2 * rows[-2:][0]["objective/kl"]:
        found["KL"] = (
            f"the KL to the reference doubled to {now['objective/kl']:.1f} nats in one iteration: "
            "lower ppo.learning_rate, or raise ppo.kl_coef"
        )
    if now["objective/entropy"] < 0.1 * first["objective/entropy"]:
        found["entropy"] = (
            f"the entropy fell from {first['objective/entropy']:.3f} to "
            f"{now['objective/entropy']:.3f} nats a token, so the policy says one thing only: "
            "raise ppo.kl_coef or ppo.entropy_coef, or lower ppo.learning_rate"
        )
    if now["response/distinct"] < 0.5 * first["response/distinct"]:
        found["repetition"] = (
            f"only {now['response/distinct']:.0%} of the responses are distinct: the policy found "
            "an answer that the reward likes everywhere; look at the reward, or raise ppo.kl_coef"
        )
    length, before = now["response/length"], first["response/length"]
    if length < 0.25 * before:
        found["short"] = (
            f"responses shrank from {before:.0f} to {length:.0f} tokens: the reward prefers short "
            "ones, or the KL penalty makes every token cost; look at the samples"
        )
    if length > 0.95 * config.max_new_tokens and length > 1.5 * before:
        found["long"] = (
            f"responses grew from {before:.0f} to {length:.0f} tokens, up to ppo.max_new_tokens: "
            "the reward prefers long ones; raise ppo.unfinished_penalty"
        )
    if now.get("policy/clipfrac", 0.0) > 0.5:
        found["clipping"] = (
            f"{now['policy/clipfrac']:.0%} of the tokens are clipped, so the updates are larger "
            "than PPO can trust: lower ppo.learning_rate or ppo.epochs"
        )
    return found
