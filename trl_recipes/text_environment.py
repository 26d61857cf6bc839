"""A language model that calls tools between the tokens of its response, for `step` to train on.

TRL 0.11's `TextEnvironment` and `TextHistory`. A call is written `<request><tool>query<call>`, the
tool's answer is appended with `<response>`, and `<submit>` ends the episode. Tokens that a tool
wrote are masked, for `PPOTrainer.step(..., response_masks=masks)`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList, StopStringCriteria

from trl_recipes.errors import RecipeError


class TextHistory:
    """What was said in one episode, as text and as tokens, and by whom.

    `token_masks` is 1 where the model wrote a token; spans are start and end of each segment.
    """

    def __init__(self, text: str, tokens: Tensor, system: bool = True):
        self.text, self.tokens = "", tokens[:0]
        self.token_masks = torch.zeros(0, dtype=torch.long, device=tokens.device)
        self.text_spans: list[tuple[int, int]] = []
        self.token_spans: list[tuple[int, int]] = []
        self.system_spans: list[bool] = []
        self.completed = self.truncated = False
        self.reward: Any = 0.0
        self.append_segment(text, tokens, system)

    def append_segment(self, text: str, tokens: Tensor, system: bool = True) -> None:
        """Append what the model wrote, or a tool (`system`); ValueError where it is empty."""
        if not len(text) or not len(tokens):
            raise ValueError("A segment needs text and tokens; got none.")
        self.text_spans.append((len(self.text), len(self.text) + len(text)))
        self.token_spans.append((len(self.tokens), len(self.tokens) + len(tokens)))
        self.system_spans.append(system)
        self.text += text
        self.tokens = torch.cat([self.tokens, tokens])
        written = torch.full((len(tokens),), int(not system), device=tokens.device)
        self.token_masks = torch.cat([self.token_masks, written])

    def complete(self, truncated: bool = False) -> None:
        """End the episode."""
        self.completed, self.truncated = True, truncated

    @property
    def last_text_segment(self) -> str:
        """Text of the last segment."""
        start, end = self.text_spans[-1]
        return self.text[start:end]

    def split_query_response_tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the first segment (Q,) and of the others (R,), and the mask of these (R,)."""
        start = self.token_spans[0][1]
        return self.tokens[:start], self.tokens[start:], self.token_masks[start:]


class TextEnvironment:
    """Lets a model with a value head answer tasks, calling tools as it goes.

    `tools` are named, or go by their class's name; `reward_fn` takes the last segments of all
    episodes, and `run`'s further arguments, and returns one reward each; `prompt` stands before
    each task. An episode has at most `max_turns` calls, `max_tool_reponse` (spelled as in TRL)
    characters of an answer, and `max_length` tokens. `generation_kwargs` are for `generate`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[Callable[[str], str]] | Mapping[str, Callable[[str], str]] = (),
        reward_fn: Callable[..., Sequence[Any]] | None = None,
        prompt: str = "",
        max_turns: int = 4,
        max_tool_reponse: int = 100,
        max_length: int | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ):
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        named = isinstance(tools, Mapping)
        self.tools = dict(tools) if named else {type(tool).__name__: tool for tool in tools}
        self.reward_fn, self.max_turns, self.max_length = reward_fn, max_turns, max_length
        self.max_tool_response = max_tool_reponse
        self.generation_kwargs = dict(generation_kwargs or {})
        self.request_token, self.call_token = "<request>", "<call>"
        self.response_token, self.submit_token = "<response>", "<submit>"
        self.current_device = model.pretrained_model.device
        self.is_encoder_decoder = bool(model.pretrained_model.config.is_encoder_decoder)

    def run(self, queries: Sequence[str], **rewards_kwargs):
        """Let the model answer each task: queries, responses, masks, rewards and histories."""
        texts = [self.prompt + query for query in queries]
        histories = [TextHistory(text, self._tokens(text)) for text in texts]
        for _ in range(self.max_turns):
            if all(history.completed for history in histories):
                break
            histories = self.tasks_end_check(self.generate(histories))
            histories = [self.step(history) for history in histories]
            histories = self.tasks_end_check(histories, model_turn=False)
        self.compute_reward(histories, **rewards_kwargs)
        parts = [history.split_query_response_tokens() for history in histories]
        queries, responses, masks = (list(part) for part in zip(*parts, strict=True))
        return queries, responses, masks, [history.reward for history in histories], histories

    def step(self, history: TextHistory) -> TextHistory:
        """Call the tool that the last segment asks for, and append its answer."""
        truncated, ended = self.task_end_check(history)
        if ended:
            history.complete(truncated)
        if history.completed:
            return history
        answer = self._answer(history.last_text_segment)
        if len(answer) > self.max_tool_response:
            answer = answer[: self.max_tool_response - 3] + "..."
        answer += self.response_token
        history.append_segment(answer, self._tokens(answer))
        return history

    def _answer(self, request: str) -> str:
        tool, query = self.parse_tool_call(request)
        if tool is None:
            return f"Unknown tool call: {request}"
        if tool not in self.tools:
            return f"Unknown tool {tool}."
        try:
            return str(self.tools[tool](query))
        except Exception as error:  # the model is to learn from it
            return f"Tool error: {error}"

    def parse_tool_call(self, text: str) -> tuple[str | None, str | None]:
        """Name of the tool and its query, of `<request><name>query<call>`; None, None of others."""
        begin, end = re.escape(self.request_token), re.escape(self.call_token)
        call = re.search(f"{begin}(?P<call>.*?){end}", text, re.DOTALL)
        found = call and re.search(r"<(?P<name>.*?)>(?P<query>.*)", call["call"], re.DOTALL)
        return (found["name"], found["query"]) if found else (None, None)

    def compute_reward(self, histories: list[TextHistory], **reward_kwargs) -> list[TextHistory]:
        """Give each episode the reward of its last segment."""
        segments = [history.last_text_segment for history in histories]
        if self.reward_fn is None:
            raise RecipeError("TextEnvironment has no `reward_fn`. Give one, a function of texts.")
        rewards = self.reward_fn(segments, **reward_kwargs)
        for history, reward in zip(histories, rewards, strict=True):
            history.reward = reward
        return histories

    def generate(self, histories: list[TextHistory]) -> list[TextHistory]:
        """Let the model go on in each episode that has not ended."""
        active = [history for history in histories if not history.completed]
        responses = self._generate_batched([history.tokens for history in active])
        texts = self.tokenizer.batch_decode(responses)
        for history, text, response in zip(active, texts, responses, strict=True):
            history.append_segment(text, response, system=False)
        return histories

    def tasks_end_check(
        self, histories: list[TextHistory], model_turn: bool = True
    ) -> list[TextHistory]:
        """Complete the episodes that have ended."""
        for history in histories:
            truncated, ended = self.task_end_check(history, model_turn)
            if ended:
                history.complete(truncated)
        return histories

    def task_end_check(self, history: TextHistory, model_turn: bool = True) -> tuple[bool, bool]:
        """Whether an episode is too long, and whether it ends here."""
        if history.completed:
            return False, False
        if self.max_length is not None and len(self._tokens(history.text)) > self.max_length:
            return True, True
        last = history.last_text_segment
        called = self.request_token in last and self.call_token in last
        ended = self.tokenizer.eos_token in history.text or self.submit_token in last
        return False, ended or (model_turn and not called)

    def _tokens(self, text: str) -> Tensor:
        return self.tokenizer(text, return_tensors="pt").input_ids[0].to(self.current_device)

    @torch.no_grad()
    def _generate_batched(self, query_tensors: list[Tensor], batch_size: int = 16) -> list[Tensor]:
        """What the model writes after each query, up to a call, a submission or its end."""
        stops = StopStringCriteria(self.tokenizer, [self.call_token, self.submit_token])
        pad, side = self.tokenizer.pad_token_id, "right" if self.is_encoder_decoder else "left"
        pad = self.tokenizer.eos_token_id if pad is None else pad  # masked in any case
        outputs = []
        for first in range(0, len(query_tensors), batch_size):
            queries = query_tensors[first : first + batch_size]
            ids = pad_sequence(queries, True, pad, side)
            mask = pad_sequence([torch.ones_like(query) for query in queries], True, 0, side)
            generated = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                stopping_criteria=StoppingCriteriaList([stops]),
                **self.generation_kwargs,
            )
            rows = generated if self.is_encoder_decoder else generated[:, ids.shape[1] :]
            outputs += [self._cut(row) for row in rows]
        return outputs

    def _cut(self, response: Tensor) -> Tensor:
        """A response up to its first stop string: the other rows of its batch went on."""
        ends = (self.call_token, self.submit_token)
        for length in range(1, len(response) + 1):
            text = self.tokenizer.decode(response[:length])
            if any(stop in text for stop in ends) or self.tokenizer.eos_token in text:
                return response[:length]
        return response
