"""What a type checker reads of the names that `__init__.py` loads when they are used."""

from .arguments import run_recipe as run_recipe
from .core import set_seed as set_seed
from .data.files import load_rows as load_rows
from .data.prompts import LengthSampler as LengthSampler
from .data.prompts import PromptArguments as PromptArguments
from .data.prompts import collator as collator
from .data.prompts import load_prompts as load_prompts
from .data.prompts import one_prompt as one_prompt
from .describe import printable as printable
from .embedded import language_model as language_model
from .errors import RecipeError as RecipeError
from .evaluation.compare import compare as compare
from .evaluation.judges import sentiment_measures as sentiment_measures
from .evaluation.judges import trained_measures as trained_measures
from .grpo import GRPOConfig as GRPOConfig
from .grpo import GRPOTrainer as GRPOTrainer
from .grpo import RLOOConfig as RLOOConfig
from .grpo import RLOOTrainer as RLOOTrainer
from .models.loading import load_run as load_run
from .models.loading import load_tokenizer as load_tokenizer
from .models.loading import model_kwargs as model_kwargs
from .models.sampling import BestOfNSampler as BestOfNSampler
from .models.sampling import generate_responses as generate_responses
from .ppo import AutoModelForCausalLMWithValueHead as AutoModelForCausalLMWithValueHead
from .ppo import AutoModelForSeq2SeqLMWithValueHead as AutoModelForSeq2SeqLMWithValueHead
from .ppo import PPOConfig as PPOConfig
from .ppo import PPOTrainer as PPOTrainer
from .ppo import create_reference_model as create_reference_model
from .report import write_comparison as write_comparison
from .report import write_report as write_report
from .report import write_results as write_results
from .report.plots import plot_stats as plot_stats
from .rewards import Rewards as Rewards
from .rewards import SentimentReward as SentimentReward
from .run_folder import check_run as check_run
from .run_folder import start_run as start_run
from .settings import setting as setting
from .stats import load_stats as load_stats
from .text_environment import TextEnvironment as TextEnvironment
from .text_environment import TextHistory as TextHistory

__version__: str
