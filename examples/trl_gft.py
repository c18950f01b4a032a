"""TRL's GRPO trainer with GFT: one expert response a group, three of the policy's own."""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig

from gft_kernels import gft
from gft_kernels.integrations.trl import GFTTrainer, given_responses

letters = "abcdefghijklmnop"
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "<eos>", *letters])}, "<pad>"))
words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
torch.manual_seed(0)
config = LlamaConfig(vocab_size=18, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
prompts = [letters[i : i + 3] for i in range(12)]
data = Dataset.from_dict({"prompt": prompts, "given": [[prompt] for prompt in prompts]})  # the expert copies


def copied(prompts, completions, **_):  # the reward: 1 for the three letters of the prompt, else 0
    return [float(text.split() == list(prompt)) for prompt, text in zip(prompts, completions, strict=True)]


with tempfile.TemporaryDirectory() as folder:
    args = GRPOConfig(
        folder, num_generations=4, per_device_train_batch_size=32, max_completion_length=4, max_steps=60,
        learning_rate=1e-2, logging_steps=20, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = GFTTrainer(
        LlamaForCausalLM(config), copied, args, train_dataset=data, processing_class=tokenizer,
        objective=gft(0.7), given=given_responses(data, tokenizer),
    )  # fmt: skip
    trainer.train()
print("reward of the policy's own:", [round(x["reward/own"], 2) for x in trainer.state.log_history if "reward" in x])
