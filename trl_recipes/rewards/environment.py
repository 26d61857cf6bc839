"""Text generation as a Gymnasium environment: for looking, and for other RL libraries.

It is exact and slow: one token a step, one text at a time. The fast path are the trainers, which
sample whole batches at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from trl_recipes.errors import RecipeError
from trl_recipes.rewards.base import RewardFunc, Rewards

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise RecipeError(
        "TextGenerationEnv needs gymnasium. Install it with `pip install 'trl_recipes[gymnasium]'`."
    ) from error


class TextGenerationEnv(gymnasium.Env):
    """One episode is one response: each action appends a token, the reward comes at its end.

    The episode is terminated by the end token, and truncated after `max_new_tokens` others; its
    last step gives the score, every other step 0. Observation: a dict of `input_ids`, (longest
    prompt and response,), padded with `pad_token_id`, and `length`, how many are tokens. Action:
    the id of the next token. Info: at the end `prompt`, `completion` and the raw value of each
    reward function. `columns` are further ones of the data set, with an entry for each prompt.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012  Gymnasium's own form
    render_mode = "ansi"

    def __init__(
        self,
        prompts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        reward_funcs: RewardFunc | list[RewardFunc],
        *,
        max_new_tokens: int = 16,
        reward_weights: list[float] | None = None,
        columns: dict[str, Sequence[Any]] | None = None,
    ):
        self.prompts, self.tokenizer = list(prompts), tokenizer
        self.prompt_ids = [tokenizer(text)["input_ids"] for text in self.prompts]
        if not self.prompts or not all(self.prompt_ids):
            raise RecipeError("TextGenerationEnv: `prompts` is empty, or one of them. Give texts.")
        self.rewards = Rewards(reward_funcs, reward_weights)
        self.columns = {name: list(values) for name, values in (columns or {}).items()}
        self.max_new_tokens = max_new_tokens
        longest = max(map(len, self.prompt_ids)) + max_new_tokens
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_token_id = next(token for token in known if token is not None)
        self.action_space = spaces.Discrete(len(tokenizer))
        self.observation_space = spaces.Dict(
            {
                "input_ids": spaces.Box(0, len(tokenizer) - 1, (longest,), np.int64),
                "length": spaces.Discrete(longest + 1),
            }
        )
        self.row, self.response, self.over = 0, [], True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode from a prompt drawn, or from that of `options={"prompt": row}`."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.prompts)))
        row = (options or {}).get("prompt", drawn)
        if not 0 <= row < len(self.prompts):
            raise RecipeError(
                f"`options` asks for prompt {row}; there are 0 to {len(self.prompts) - 1}."
            )
        self.row = row
        self.response, self.over = [], False
        return self._observation(), {"row": self.row, "prompt": self.prompts[self.row]}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Append the token of this id; the response ends with the end token, or when it is full."""
        if self.over:
            raise RecipeError("The episode is over or none was started. Call `reset` first.")
        if not self.action_space.contains(action):
            raise RecipeError(
                f"Action {action!r} is no token: ids are whole numbers from 0 to "
                f"{self.action_space.n - 1}."
            )
        self.response.append(int(action))
        terminated = int(action) == self.tokenizer.eos_token_id
        truncated = not terminated and len(self.response) == self.max_new_tokens
        observation = self._observation()
        if not (terminated or truncated):
            return observation, 0.0, False, False, {}
        reward, info = self._score()
        self.over = True
        return observation, reward, terminated, truncated, info

    def render(self) -> str:
        """Give the text so far."""
        return self.tokenizer.decode(self._tokens())

    def _tokens(self) -> list[int]:
        return [*self.prompt_ids[self.row], *self.response]

    def _observation(self) -> dict[str, Any]:
        tokens = self._tokens()
        space = self.observation_space["input_ids"]
        ids = np.full(space.shape, self.pad_token_id, dtype=np.int64)
        ids[: len(tokens)] = tokens
        return {"input_ids": ids, "length": np.int64(len(tokens))}

    def _score(self) -> tuple[float, dict[str, Any]]:
        prompt = self.prompts[self.row]
        completion = self.tokenizer.decode(self.response, skip_special_tokens=True)
        columns = {name: [values[self.row]] for name, values in self.columns.items()}
        (total,), raw = self.rewards([prompt], [completion], [self.response], columns)
        values = {name: value for name, (value,) in raw.items()}
        return total, {"prompt": prompt, "completion": completion, "rewards": values}
