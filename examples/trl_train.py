"""TRL's script style, on TRL's dataset format with scores.

    python examples/trl_train.py --output_dir runs/trl --objectives helpfulness brevity \\
        --scales helpfulness=0:4,brevity=0:4 --max_steps 6 --learning_rate 1e-3 --use_cpu
    python examples/trl_train.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name my/preferences ... \\
        --use_peft --lora_r 32 --lora_alpha 16

Without a model and a dataset it takes the small ones of examples/tiny.py. Flags may stand in a file: --config x.yaml.
"""

import tiny
from datasets import Dataset, load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from amopo.ending import entry
from amopo.integrations.trl import AMoPOConfig, AMoPOTrainer


def main(script_args, training_args, model_args):
    if script_args.dataset_name:
        dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config)
    else:
        dataset = Dataset.from_list(tiny.preferences()).train_test_split(test_size=4, seed=0)
    # Many datasets have no test split; only an evaluation needs one.
    evaluates = training_args.eval_strategy != "no"
    model, tokenizer = model_args.model_name_or_path, None
    if model is None:
        model, tokenizer = tiny.load()
    else:
        training_args.model_init_kwargs = {
            "revision": model_args.model_revision,
            "attn_implementation": model_args.attn_implementation,
            "dtype": model_args.dtype,
            **(training_args.model_init_kwargs or {}),
        }
    trainer = AMoPOTrainer(
        model,
        training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if evaluates else None,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}")
    return trainer


def start():
    main(*TrlParser((ScriptArguments, AMoPOConfig, ModelConfig)).parse_args_and_config())


if __name__ == "__main__":
    entry(start)  # under accelerate launch: how a rank ends
