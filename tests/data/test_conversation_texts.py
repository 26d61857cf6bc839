"""Texts of prompts and completions, plain or conversations."""

from trl_recipes.data.conversations import completion_texts, full_texts, is_conversation, plain_text

ASKED = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]
ANSWERED = [{"role": "assistant", "content": "Because."}]


def test_plain_texts_are_joined_as_they_are():
    assert full_texts(["The film", ""], [" was good", "x"]) == ["The film was good", "x"]
    assert completion_texts([" was good"]) == [" was good"]


def test_messages_follow_each_other_on_lines():
    assert full_texts([ASKED], [ANSWERED]) == ["Be short.\nWhy?\nBecause."]
    assert completion_texts([ANSWERED]) == ["Because."]


def test_parts_of_a_message_that_are_no_text_do_not_count():
    parts = [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "a"}]
    assert plain_text([{"role": "user", "content": parts}]) == "Look: a"
    assert plain_text([{"role": "assistant", "content": None, "tool_calls": []}]) == ""


def test_only_lists_of_messages_are_conversations():
    assert is_conversation(ASKED)
    assert not is_conversation("text")
    assert not is_conversation([1, 2])
