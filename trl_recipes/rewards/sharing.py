"""Reward functions in several processes: of each on its own part, or once on all of them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trl_recipes.distributed import broadcast_from_main, gather, process_index, raise_on_all
from trl_recipes.rewards.base import Rewards, Text


def score_part(
    rewards: Rewards,
    once: bool,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    **extras: Any,
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Score this process's part of a batch; every process calls this with its own.

    Args:
        rewards: the same in all processes.
        once: whether the main process calls the functions, once, with the whole batch in the order
            of the processes, which is that of one process that has it all.
        prompts: B texts or conversations.
        completions: B texts or conversations.
        completion_ids: B lists of token ids.
        columns: further columns of the data set, B entries each.
        **extras: as for a call of `rewards`; of the main process where it alone calls them.

    Returns:
        As a call of `rewards` does, for the part.

    Raises:
        RecipeError: as a call of `rewards`, in all processes, wherever it was raised.
    """
    if not once:
        call = partial(rewards, prompts, completions, completion_ids, columns, **extras)
        return raise_on_all(call)
    parts = gather([(list(prompts), list(completions), list(completion_ids), dict(columns))])
    texts = ([row for part in parts for row in part[place]] for place in range(3))
    joined = {name: [value for part in parts for value in part[3][name]] for name in columns}
    scores, raw = broadcast_from_main(partial(rewards, *texts, joined, **extras))
    mine = part_of(len(prompts))
    return scores[mine], {name: values[mine] for name, values in raw.items()}


def part_of(count: int) -> slice:
    """Give the place of this process's part in the whole batch.

    Args:
        count: entries of the part.
    """
    before = gather([count])[: process_index()]
    return slice(sum(before), sum(before) + count)


def check_rewards(rewards: Rewards, once: bool, *samples: Any, **extras: Any) -> None:
    """Call every function on two samples before training: in each process, or once.

    Args:
        rewards: the same in all processes.
        once: whether the main process calls them for all.
        *samples: as for `Rewards.check`.
        **extras: as for `Rewards.check`.

    Raises:
        RecipeError: as `Rewards.check`, in all processes.
    """
    (broadcast_from_main if once else raise_on_all)(partial(rewards.check, *samples, **extras))
