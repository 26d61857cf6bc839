"""What recipes/grpo_shouting.py is made of: its text, its stages, its evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_recipes.data.characters import divide_text, read_text
from trl_recipes.distributed import is_main_process
from trl_recipes.embedded.dialogue import write_dialogue
from trl_recipes.errors import RecipeError
from trl_recipes.evaluation.compare import Comparison, compare
from trl_recipes.grpo import GRPOConfig, GRPOTrainer
from trl_recipes.models.loading import load_run
from trl_recipes.report import write_report
from trl_recipes.report.plots import plot_comparison, plot_losses, plot_stats
from trl_recipes.rewards import RewardFunc
from trl_recipes.rewards.rules import known_share, whole_words
from trl_recipes.run_folder import RunFolder, check_output_dir
from trl_recipes.stats import distinct_n, load_stats
from trl_recipes.training.baseline import BaselineConfig
from trl_recipes.training.language_model import PretrainConfig
from trl_recipes.training.stage import begin, digest, finish, has_begun, result_of, settings_of

RESULTS = "comparison.txt"  # what the recipe prints at its end


@dataclass(frozen=True)
class CharacterText:
    """A text in two parts; `train` and `heldout` together are `whole`.

    Attributes:
        whole: the text.
        train: its first part, to learn from.
        heldout: the rest, to measure by.
    """

    whole: str
    train: str
    heldout: str

    @classmethod
    def read(cls, text_file: str | None, context_length: int) -> "CharacterText":
        """Read a text, each part at least one context long.

        Args:
            text_file: in UTF-8; None takes the embedded dialogue.
            context_length: of the model, in characters.

        Raises:
            RecipeError: the file is missing, empty, no text or too short.
        """
        whole = read_text(text_file) if text_file else write_dialogue()
        source = text_file or "the embedded dialogue"
        return cls(whole, *divide_text(whole, context_length, source))

    @property
    def digest(self) -> str:
        """Size and checksum, which tell it from any other text."""
        return f"{len(self.whole)} characters, {digest([self.whole])}"


@dataclass
class Stage:
    """One of the recipe's stages, in a folder of its own.

    Attributes:
        name: of the stage.
        folder: of its result.
        settings: all that decides it, with what decides the stages before it.
        anew: it is to be done again, whatever is there.
        begun: its folder holds a result, or a part of one.
        finished: its folder holds the whole result.

    Raises:
        RecipeError: what the folder holds was made with other settings.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    anew: bool = False

    def __post_init__(self):
        there = has_begun(self.folder) and not self.anew
        found = result_of(self.folder, self.settings, f"the {self.name}") if there else None
        self.begun, self.finished = there, found is not None

    def begin(self) -> None:
        """Note what it is made from; its work starts now."""
        if is_main_process():
            self.folder.mkdir(parents=True, exist_ok=True)
        begin(self.folder, self.settings)

    def finish(self, **result: Any) -> None:
        """Note that its result is whole.

        Args:
            **result: what it found, ready for JSON.
        """
        finish(self.folder, self.settings, result)
        self.begun = self.finished = True


class Stages:
    """Stages in turn; what decides one decides all behind it.

    Args:
        wanted: the one to do, or "all"; those before it must be there then, those behind it are not
            looked at.
        anew: do what is wanted again, whatever is there.
    """

    def __init__(self, wanted: str, *, anew: bool = False):
        self.wanted, self.anew = wanted, anew
        self._stages: dict[str, Stage] = {}
        self._settings: dict[str, Any] = {}

    def add(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        """Add the next stage, and hold what its folder has to what would be made now.

        Args:
            name: its name.
            folder: of its result.
            settings: what decides it beside what decides the stages before it.

        Raises:
            RecipeError: as `Stage`, or the wanted stage needs this one and it is not there.
        """
        if self.wanted in self._stages:
            return
        self._settings |= settings
        wanted = self.wanted in ("all", name)
        stage = Stage(name, folder, dict(self._settings), anew=self.anew and wanted)
        if not wanted and not stage.finished:
            raise RecipeError(
                f"--stage {self.wanted} needs the {name}, and `{folder}` holds none that is "
                f"finished. Run --stage {name} first, or leave --stage out to run all."
            )
        self._stages[name] = stage

    def todo(self, name: str) -> Stage | None:
        """Give a stage that is wanted and not finished; None for others.

        Args:
            name: of the stage.
        """
        stage = self._stages.get(name)
        return None if stage is None or stage.finished else stage

    @property
    def begun(self) -> bool:
        """Whether any was begun before."""
        return any(stage.begun for stage in self._stages.values())

    def result(self, name: str, file: str) -> str:
        """Read a text that a stage left; empty where it is not there, and beside the main process.

        Args:
            name: of the stage.
            file: in its folder.
        """
        stage = self._stages.get(name)
        there = stage is not None and stage.finished and is_main_process()
        return (stage.folder / file).read_text(encoding="utf-8") if there else ""

    def describe(self) -> str:
        """Say which stages are there, which is gone on with and which are to do."""
        states = {True: "go on", False: "to do"}
        return ", ".join(
            f"{name}: {'there' if stage.finished else states[stage.begun]}"
            for name, stage in self._stages.items()
        )


def plan_stages(
    text: CharacterText, args: Any, sizes: BaselineConfig, config: GRPOConfig
) -> Stages:
    """Find out which stages are there and which are to do; nothing is written.

    Args:
        text: what everything is made from.
        args: of the recipe: `stage`, `prompt_length` and `eval_prompts`.
        sizes: of the model, and its training.
        config: of the GRPO run; its `resume_from_checkpoint` is set where that run was begun.

    Raises:
        RecipeError: the folder holds something else, or nothing to go on with; sizes that do not
            fit together; a launch with DeepSpeed.
    """
    if config.deepspeed_plugin is not None:
        raise RecipeError(
            "grpo_shouting.py trains two models one after the other, and accelerate prepares one a "
            "process for DeepSpeed. Launch with `--config_file recipes/accelerate/"
            "several_gpus.yaml`."
        )
    needed = args.prompt_length + config.response_length
    if needed > sizes.context_length:
        raise RecipeError(
            f"--context_length ({sizes.context_length}) must hold a prompt (--prompt_length "
            f"{args.prompt_length}) and a completion (--response_length {config.response_length}):"
            f" {needed} characters. Set it to {needed} or more, or shorten the others."
        )
    run = RunFolder(Path(config.output_dir))
    grpo = settings_of(config)
    stages = Stages(args.stage, anew=config.overwrite_output_dir)
    stages.add("tokenizer", run.path / "tokenizer", {"text": text.digest})
    baseline = settings_of(sizes) | {"seed": config.seed}
    stages.add("baseline", run.path / "baseline", baseline)
    stages.add("grpo", run.path, {"prompt_length": args.prompt_length} | grpo)
    stages.add("evaluation", run.path / "evaluation", {"eval_prompts": args.eval_prompts})
    resume, going_on = config.resume_from_checkpoint, stages.todo("grpo")
    if resume and not stages.begun:
        raise RecipeError(
            f"--resume_from_checkpoint: `{run}` holds no run to go on with. Check --output_dir."
        )
    begun = going_on is not None and going_on.begun
    config.resume_from_checkpoint = (resume or "true") if begun else None
    if going_on is not None:
        check_output_dir(run.path, overwrite=config.overwrite_output_dir, resume=begun)
    return stages


def baseline_training(stages: Stages, sizes: BaselineConfig, config: GRPOConfig) -> PretrainConfig:
    """Settings of the baseline's training, in its own run folder inside that of the GRPO run.

    Args:
        stages: as `plan_stages` gave them.
        sizes: of the model, and its training.
        config: of the GRPO run: folder, seed, checkpoints, device.
    """
    stage = stages.todo("baseline")
    return sizes.training(
        Path(config.output_dir) / "baseline",
        seed=config.seed,
        save_steps=10 * config.save_steps,  # its steps are as much quicker
        save_strategy=config.save_strategy,
        resume_from_checkpoint="true" if stage is not None and stage.begun else None,
        overwrite_output_dir=stages.anew,
        use_cpu=config.use_cpu,
        report_to=config.report_to,
        disable_tqdm=config.disable_tqdm,
    )


def keep_tokenizer(tokenizer: PreTrainedTokenizerBase, stage: Stage) -> None:
    """Save the tokenizer, in the main process.

    Args:
        tokenizer: of characters.
        stage: whose result it is.
    """
    stage.begin()
    if is_main_process():
        tokenizer.save_pretrained(stage.folder)
    stage.finish()


def keep_policy(trainer: GRPOTrainer, run: RunFolder) -> None:
    """Save the policy and draw how it came about, in the main process.

    Args:
        trainer: trained.
        run: its folder.
    """
    trainer.save_model()
    if is_main_process():
        plot_stats(trainer.all_stats, run.plots / "training.png", title=run.path.name)


def tell_baseline(folder: Path, losses: dict[str, float]) -> str:
    """Draw the baseline's losses, in the main process, and say how well it came out.

    Args:
        folder: its run folder.
        losses: what `train_baseline` gave.
    """
    run = RunFolder(folder)
    nats, count = losses["heldout_loss"], losses["heldout_characters"]
    told = f"baseline: held-out loss {nats:.3f} nats per character"
    if is_main_process():
        plot_losses(load_stats(run.path), run.plots / "training.png", told)
    write_report(run, {"held-out loss, nats per character": nats, "held-out characters": count})
    return f"{told} (n = {count} characters)"


def evaluate(
    run: RunFolder,
    folder: Path,
    held_out: Dataset,
    rewards: Sequence[RewardFunc],
    max_new_tokens: int,
) -> None:
    """Compare the GRPO model with the baseline on held-out prompts: numbers, texts, a picture.

    The main process alone does so.

    Args:
        run: the GRPO run, which has the baseline's in it.
        folder: gets comparison.json, comparison.txt and comparison.png, and the run its page.
        held_out: prompts, as `cut_prompts` gives them.
        rewards: what to measure; the first is called the score, the last is a KnownWordsReward.
        max_new_tokens: length of a completion.
    """
    if not is_main_process():
        return
    measures = {reward.__name__: reward for reward in rewards}
    models = {"baseline": load_run(run.path / "baseline"), "GRPO": load_run(run.path)}
    results = compare(
        models, held_out, measures, max_new_tokens=max_new_tokens, reference="baseline"
    )
    results.save(folder / "comparison.json")
    plot_comparison(results, folder / "comparison.png")
    told = [
        results.side_by_side(5, width=100),
        results.table(),
        word_figures(results, rewards[-1].words),
    ]
    (folder / RESULTS).write_text("\n\n".join(told) + "\n", encoding="utf-8")
    write_report(run)


def word_figures(results: Comparison, known_words: set[str]) -> str:
    """Say whether completions still are text: words that it knows, and distinct pairs of words.

    Args:
        results: models on the same prompts.
        known_words: as `words_of` gives them.
    """
    lines = []
    for result in results.results:
        share = known_share(result.responses, known_words)
        pairs = distinct_n([whole_words(response) for response in result.responses], 2)
        lines.append(
            f"{result.name}: {share:.1%} of all words are words of the training text, {pairs:.1%} "
            "of the pairs of words are distinct."
        )
    return "\n".join(lines)
