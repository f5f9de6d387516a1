"""LoRA as a result (extract: what fine-tuning changed; output: what a reduction changes) and as an input (resize)."""
