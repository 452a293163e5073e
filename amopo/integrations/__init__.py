"""The fused path in the trainers and loops that people have. One module per host; each imports its own package alone.

patch          any Hugging Face causal LM: labels or a layout in, per-token log-probs out
collator       samples -> packed or padded batches
hf             transformers.Trainer: a mixin and a collator
trl            TRL's dataset formats, script style and peft_config
llamafactory   LLaMA-Factory's DPO stage on fused log-probs, and AMoPO as a loss of it
axolotl        a plugin
"""
