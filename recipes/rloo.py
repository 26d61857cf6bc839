"""Train a language model on reward functions of your own, with RLOO.

    accelerate launch recipes/rloo.py --reward_funcs my_rewards.py:vowels    # runs/rloo-vowels
    python recipes/compare.py runs/rloo-vowels

With no model and no prompts named, both come with this project; no network.
"""

from trl import ModelConfig, get_peft_config

from trl_recipes import (
    PromptArguments,
    RLOOConfig,
    RLOOTrainer,
    check_run,
    compare,
    language_model,
    load_run,
    model_kwargs,
    run_recipe,
    start_run,
    trained_measures,
    write_report,
    write_results,
)


def main(args: PromptArguments, config: RLOOConfig, model_config: ModelConfig) -> None:
    config.save_to("runs/rloo")
    check_run(config)

    # Models
    name = model_config.model_name_or_path or str(language_model())
    loading = model_kwargs(model_config) | {"trust_remote_code": config.trust_remote_code}
    model, tokenizer = load_run(name, **loading)

    # Prompts
    fit = {"model": model, "response_length": config.response_length}
    prompts = args.load("train", tokenizer, config.seed, **fit)
    held_out = args.load("test", tokenizer, seed=0, **fit)  # the same for every run

    # Trainer
    trainer = RLOOTrainer(
        args=config,
        model=model,
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
    )
    trainer.accelerator.print(trainer.describe())
    if config.check:
        return trainer.accelerator.print(trainer.check())
    with start_run(config, (args, config, model_config), write_report) as run:
        trainer.train()
        trainer.save_model()

    # Results
    if trainer.accelerator.is_main_process:
        models = {"reference": load_run(name, **loading), run.path.name: load_run(run, **loading)}
        measures = trained_measures(trainer.rewards)
        results = compare(models, held_out, measures, max_new_tokens=config.response_length)
        print(write_results(run, results))


if __name__ == "__main__":
    run_recipe(main, PromptArguments, RLOOConfig, ModelConfig, default_config="rloo")
