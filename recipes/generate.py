"""Continue a prompt with a trained model, several times, and score what it says.

python recipes/generate.py --model runs/ppo-good --prompt "The film"
python recipes/generate.py --prompt "The film"      # the embedded model, before any training
python recipes/generate.py --model runs/chat --chat true --prompt "Say hello."
python recipes/generate.py --model runs/ppo-seq2seq --prompt "The plot was dull."    # rewrites it
"""

from dataclasses import dataclass, field

import torch
from accelerate import PartialState

from trl_recipes import (
    RecipeError,
    collator,
    generate_responses,
    language_model,
    load_run,
    one_prompt,
    printable,
    run_recipe,
    setting,
)
from trl_recipes.evaluation.compare import mean_interval
from trl_recipes.evaluation.judges import score_of
from trl_recipes.models.loading import check_lengths
from trl_recipes.rewards.base import reward_inputs


@dataclass
class GenerateArguments:
    """What to continue, with what."""

    prompt: str = field(metadata={"help": "Text to continue."})
    chat: bool = setting(False, "The prompt is a message that a chat model answers.")
    model: str | None = setting(
        None, "Run folder, model folder, GGUF file or hub name; embedded when left out."
    )
    num_return_sequences: int = setting(5, "Number of continuations.")
    max_new_tokens: int = setting(16, "Most tokens of a continuation; it may end earlier.")
    temperature: float = setting(1.0, "Below 1 the likely words win more often, above 1 less.")
    reward_model: str | None = setting(
        None, "Classifier that scores: folder or hub name; embedded when left out."
    )
    label: str = setting("POSITIVE", "Label of the classifier whose score is shown.")
    seed: int = setting(0, "Seed of the sampling.")
    trust_remote_code: bool = setting(False, "Run code that a model from the hub brings along.")

    def __post_init__(self):
        for name in ("num_return_sequences", "max_new_tokens", "temperature"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"--{name} is {getattr(self, name)}. Give more than 0.")


def main(args: GenerateArguments) -> None:
    # Models
    trusted = {"trust_remote_code": args.trust_remote_code}
    model, tokenizer = load_run(args.model or language_model(), source="--model", **trusted)
    model.to(PartialState().device)

    # Prompts
    batch = collator(one_prompt(args.prompt, tokenizer, args.num_return_sequences, args.chat))
    prompt_length = len(batch["input_ids"][0])
    check_lengths(prompt_length, args.max_new_tokens, model, "--max_new_tokens")

    # Reward
    reward, scale = score_of(args.model, model, args.reward_model, args.label, **trusted)

    # Generation
    torch.manual_seed(args.seed)
    responses = generate_responses(
        model,
        batch["input_ids"],
        pad_token_id=0,  # any token: masks come from lengths
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
    )
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    prompts, completions, _ = reward_inputs(batch, texts, tokenizer)
    ids = [response.tolist() for response in responses]
    scores = reward(prompts=prompts, completions=completions, completion_ids=ids)

    # Results
    print(f"score   text (score: {printable(scale)})")
    before = [""] * len(scores) if model.config.is_encoder_decoder else batch["query"]
    for score, query, response in zip(scores, before, texts, strict=True):
        print(f"{score:6.2f}  {printable(query + response)}")
    mean, half = mean_interval(scores)
    interval = f", 95 % interval ± {half:.2f}" if len(scores) > 1 else ""
    print(f"{mean:6.2f}  mean of {len(scores)}{interval}")


if __name__ == "__main__":
    run_recipe(main, GenerateArguments, trains=False)
