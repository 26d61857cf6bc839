"""Prompts: whole characters of texts, cut to their lengths; and what cannot be one."""

import pytest
import regex
from test_data_files import ROWS, SHARED, all_train, write_jsonl

from trl_recipes.data.files import load_rows
from trl_recipes.data.prompts import LengthSampler, load_prompts
from trl_recipes.errors import RecipeError


def test_a_prompt_is_the_first_tokens_of_its_text(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", all_train(ROWS))
    lengths = iter([2, 5, 3])
    prompts = load_prompts(path, tokenizer, length_sampler=lambda: next(lengths))
    assert prompts["label"][:] == [1, 0, 1]
    for row, length, prompt in zip(ROWS, [2, 5, 3], prompts, strict=True):
        ids = tokenizer.encode(row["text"])[:length]
        made = {"input_ids": ids, "query": tokenizer.decode(ids), "text": row["text"]}
        assert {name: prompt[name] for name in made} == made


@pytest.mark.parametrize(
    "text",
    [
        "电影很好看我喜欢",
        "👍🏽👨‍👩‍👧🇩🇪🇫🇷 ok",
        "e\u0301a\u0300\u0327 n\u0303o",
        "a\u0301",
        "नमस्ते फिल्म",
    ],
)
def test_a_prompt_is_cut_at_whole_characters(tmp_path, tokenizer, text):
    characters = regex.findall(r"\X", text)
    starts = ["".join(characters[:count]) for count in range(1, len(characters) + 1)]
    sizes = [len(tokenizer(start)["input_ids"]) for start in starts]
    lengths = range(1, sizes[-1] + 2)
    path = write_jsonl(tmp_path / "a.jsonl", all_train([{"text": text}] * len(lengths)))
    prompts = load_prompts(path, tokenizer, length_sampler=iter(lengths).__next__)
    for length, prompt in zip(lengths, prompts, strict=True):
        fitting = [start for start, size in zip(starts, sizes, strict=True) if size <= length]
        assert prompt["query"] == (fitting or starts)[-1 if fitting else 0]
        assert tokenizer(prompt["query"])["input_ids"] == prompt["input_ids"]


def test_empty_prompts_are_left_out_and_counted(tmp_path, tokenizer, caplog):
    rows = [{"text": text} for text in ["", "good", None, "  \n", "bad"]]
    path = write_jsonl(tmp_path / "a.jsonl", all_train(rows))
    prompts = load_prompts(path, tokenizer, length_sampler=LengthSampler(8, 9))
    assert prompts["query"][:] == ["good", "bad"]
    assert "3 of 5 prompts" in caplog.text


@pytest.mark.parametrize("texts", [["", " "], ["good", "bad"]], ids=["no text", "no length"])
def test_all_prompts_empty_after_cutting_is_an_error(tmp_path, tokenizer, texts):
    path = write_jsonl(tmp_path / "a.jsonl", all_train([{"text": t} for t in texts]))
    with pytest.raises(RecipeError, match=r"all 2 prompts .* are empty after cutting. Give texts"):
        load_prompts(path, tokenizer, length_sampler=lambda: 0)


def test_a_missing_text_column_or_one_of_numbers_is_an_error(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "x", "stars": 1}] * 20)
    for column in (None, "review"):
        with pytest.raises(RecipeError, match=r"^--text_column: .*Its columns are: body, stars"):
            load_prompts(path, tokenizer, length_sampler=lambda: 2, text_column=column)
    assert len(load_prompts(path, tokenizer, length_sampler=lambda: 2, text_column="body")) == 18
    with pytest.raises(RecipeError, match=r"row 1 of .*column `stars` holds .* which is no text"):
        load_prompts(path, tokenizer, length_sampler=lambda: 2, text_column="stars")


def test_max_prompts_draws_rows_from_all_over_the_data_set(tmp_path, tokenizer):
    rows = [{"text": f"{i} films"} for i in range(200)]
    rows[7]["text"] = ""
    path = write_jsonl(tmp_path / "a.jsonl", all_train(rows))

    def draw(**options):
        return load_prompts(path, tokenizer, length_sampler=lambda: 9, **options)["text"][:]

    drawn = draw(max_prompts=40)
    assert len(drawn) == len(set(drawn)) == 40
    assert max(int(text.split()[0]) for text in drawn) > 150
    assert drawn == draw(max_prompts=40, seed=0) != draw(max_prompts=40, seed=1)
    assert len(draw(max_prompts=1000)) == 199


@pytest.mark.parametrize(
    ("split", "part"), [("train", "prompts"), ("test", "heldout"), ("heldout", "heldout")]
)
def test_the_embedded_prompts_are_set_aside_from_what_models_learned(
    monkeypatch, tokenizer, split, part
):
    asked = []
    monkeypatch.setattr("trl_recipes.embedded.reviews", lambda name: asked.append(name) or ROWS)
    assert len(load_prompts(None, tokenizer, split=split, length_sampler=lambda: 3)) == 3
    assert asked == [part]
    assert load_rows(None, split="train").to_list() == ROWS
    assert asked == [part, "train"]


@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data beside the repository")
@pytest.mark.parametrize(
    ("file", "train", "test"),
    [("movie_reviews/reviews.jsonl", 1800, 200), ("rt_polarity/sentences.jsonl", 9596, 1066)],
)
def test_real_reviews_are_read_whole(tokenizer, file, train, test):
    path = str(SHARED / file)
    assert [len(load_rows(path, split=split)) for split in ("train", "test")] == [train, test]
    lengths = LengthSampler(2, 9, seed=0)
    prompts = load_prompts(path, tokenizer, split="test", length_sampler=lengths, max_prompts=50)
    assert {len(ids) for ids in prompts["input_ids"]} == set(range(2, 9))
