"""Episodes in which a model calls tools: who wrote which token, and when an episode ends."""

import pytest
import torch

from trl_recipes import AutoModelForCausalLMWithValueHead as ValueHeadModel
from trl_recipes import RecipeError, TextEnvironment, TextHistory, load_tokenizer

REQUEST = "<request><echo>2 + 2<call>"


def echo(query):
    return query


@pytest.fixture
def environment(tiny_gpt2):
    model = ValueHeadModel.from_pretrained(str(tiny_gpt2))
    tokenizer = load_tokenizer(str(tiny_gpt2))
    settings = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": tokenizer.eos_token_id}

    def make(**changes):
        options = {"tools": {"echo": echo}, "reward_fn": lambda texts: [len(t) for t in texts]}
        return TextEnvironment(model, tokenizer, generation_kwargs=settings, **options | changes)

    return make


def says(environment, *texts):
    """Let the model write these texts, one a turn, in every episode that goes on."""
    turns = iter(texts)

    def generate(histories):
        text = next(turns)
        for history in histories:
            if not history.completed:
                history.append_segment(text, environment._tokens(text), system=False)
        return histories

    environment.generate = generate


def test_the_mask_is_1_where_the_model_wrote():
    history = TextHistory("What is", torch.tensor([1, 2]))
    history.append_segment(" 2 + 2", torch.tensor([3, 4, 5]), system=False)
    history.append_segment(" four", torch.tensor([6]))
    query, response, mask = history.split_query_response_tokens()
    assert (query.tolist(), response.tolist()) == ([1, 2], [3, 4, 5, 6])
    assert mask.tolist() == [1, 1, 1, 0]
    assert (history.text, history.last_text_segment) == ("What is 2 + 2 four", " four")
    with pytest.raises(ValueError, match="needs text and tokens"):
        history.append_segment("", torch.tensor([1]))


def test_without_a_reward_function_there_is_none_to_give(environment):
    says(env := environment(reward_fn=None), "<submit>")
    with pytest.raises(RecipeError, match="TextEnvironment has no `reward_fn`"):
        env.run(["add"])


def test_a_tool_answers_between_the_tokens_of_the_model(environment):
    env = environment(prompt="Task: ")
    says(env, REQUEST, "<submit>")
    (query,), (response,), (mask,), rewards, (history,) = env.run(["add"])
    assert history.text == f"Task: add{REQUEST}2 + 2<response><submit>"
    parts = (query, response[mask == 1], response[mask == 0])
    written = [env.tokenizer.decode(part) for part in parts]
    assert written == ["Task: add", f"{REQUEST}<submit>", "2 + 2<response>"]
    assert rewards == [len("<submit>")]
    assert (history.completed, history.truncated) == (True, False)


@pytest.mark.parametrize(
    ("text", "tool", "query"),
    [
        ("so <request><add>1 > 0<call>", "add", "1 > 0"),
        ("<request><add>two\nlines<call> more", "add", "two\nlines"),
        ("<add>1<call>", None, None),
        ("<request><add>1", None, None),
        ("<request>|add|1<call>", None, None),
    ],
)
def test_calls_are_read(environment, text, tool, query):
    assert environment().parse_tool_call(text) == (tool, query)


def broken(query):
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("tools", "answer"),
    [
        ({"echo": broken}, "Tool error: division by zero"),
        ({"other": echo}, "Unknown tool echo."),
        ({"echo": lambda query: "a" * 200}, "a" * 97 + "..."),
        ({"echo": lambda query: 4}, "4"),
    ],
)
def test_what_a_tool_does_wrong_is_told_to_the_model(environment, tools, answer):
    env = environment(tools=tools)
    says(env, REQUEST, "<submit>")
    *_, histories = env.run(["x"])
    assert f"<call>{answer}<response>" in histories[0].text


def test_an_episode_ends_without_a_call_by_turns_or_by_length(environment):
    def history(*texts, **options):
        env = environment(**options)
        says(env, *texts)
        return env.run(["x"])[-1][0]

    assert history("no call").text == "xno call"
    assert history(*[REQUEST] * 3, max_turns=2).text.count("<response>") == 2
    cut = history(*[REQUEST] * 3, max_length=5)
    assert cut.truncated
    assert "<response>" not in cut.text


def test_rows_of_a_batch_do_not_depend_on_their_neighbors(environment):
    env = environment()
    queries = [env._tokens(text) for text in ("The acting", "I liked the music, but the")]
    together = env._generate_batched(queries)
    alone = [env._generate_batched([query])[0] for query in queries]
    assert [row.tolist() for row in together] == [row.tolist() for row in alone]
