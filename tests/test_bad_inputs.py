"""Every mistake of bad_inputs.py, through each recipe's own script, is told and costs nothing.

The recipes run in children of one interpreter that has imported everything, forked one a row.
"""

import re
import shlex

import pytest
from bad_inputs import BAD_INPUTS, rows
from launching import RECIPES, run_warm
from tiny_models import save_tiny_classifier
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

# What else may stand on stderr: transformers' progress bars, its remarks on a model's files, and
# its table of weights that do not fit.
HARMLESS = re.compile(
    r"|Loading weights: .*|\[transformers\] .*|Notes:|- (MISSING|UNEXPECTED|MISMATCH):.*"
    r"|Key .*\|.*|-+\+[-+]*|.*\| (MISSING|UNEXPECTED|MISMATCH) .*"
)


@pytest.fixture(scope="session")
def models(tmp_path_factory, tiny_gpt2):
    """One folder a model, in the hub's format; made once."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    save_tiny_classifier(tokenizer, folder / "classifier")
    tokenizer.save_pretrained(folder / "t5")
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    sizes |= {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    t5 = T5Config(**sizes, decoder_start_token_id=0)
    T5ForConditionalGeneration(t5).save_pretrained(folder / "t5")
    return {"gpt2": tiny_gpt2, "classifier": folder / "classifier", "t5": folder / "t5"}


def contents(folder):
    """Every path below a folder, with the bytes of the files."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("row", BAD_INPUTS, ids=lambda row: row.name)
def test_a_mistake_is_one_message_and_nothing_is_written(row, models, tmp_path):
    for name, content in ({"data.jsonl": rows()} | row.files).items():
        if callable(content):
            content(tmp_path / name, models)
        else:
            (tmp_path / name).write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )
    recipe, *words = shlex.split(row.command.format(**models))
    before = contents(tmp_path), [contents(folder) for folder in models.values()]
    done = run_warm(recipe, *words, cwd=tmp_path)
    told = done.stderr
    assert done.returncode == 2, told[-3000:]
    lines = [line for line in re.split(r"[\r\n]", told) if not HARMLESS.fullmatch(line)]
    assert len(lines) == 1, told[-3000:]
    assert lines[0].startswith("error: ")
    assert [word for word in row.says if word not in lines[0]] == [], lines[0]
    assert before == (contents(tmp_path), [contents(folder) for folder in models.values()])


def test_the_table_is_large_and_its_rows_differ():
    assert len(BAD_INPUTS) >= 80
    assert len({row.name for row in BAD_INPUTS}) == len(BAD_INPUTS)
    recipes = {row.command.split()[0] for row in BAD_INPUTS}
    assert recipes == {path.name for path in RECIPES.glob("*.py")}
    assert all(len(row.says) >= 2 for row in BAD_INPUTS)  # cause and remedy
