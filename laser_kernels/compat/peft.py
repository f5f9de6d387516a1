"""Where PEFT decomposes weights.

What calls torch.svd_lowrank (pissa_niter_N, PSOFT, LoRA-GA, EVA, AdaMSS) is covered as patch("torch") covers it. Here is
what makes a full SVD and keeps a known number of triples. Not here, because they use all triples or the smallest: CorDA,
OSF, FroD, MiCA, KaSA, intruder dimensions, scans by svdvals; nor conversion to a rank that a threshold finds.
Checked against huggingface/peft 0.21.2.
"""

from __future__ import annotations

from laser_kernels.compat.cut import Site

SITES = (
    # init_lora_weights="pissa"
    Site("peft.tuners.lora.layer", "LoraLayer.pissa_init", lambda call: call["self"].r[call["adapter_name"]]),
    # convert_to_lora, save_as_lora; an int is a rank, a float a threshold
    Site("peft.tuners.lora.conversion", "_convert_module_to_lora", lambda call: call["rank"]),
    # add_weighted_adapter with combination_type "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"
    Site(
        "peft.tuners.lora.model",
        "LoraModel._svd_generalized_task_arithmetic_weighted_adapter",
        lambda call: call["new_rank"],
    ),
    Site("peft.tuners.psoft.layer", "PsoftLayer._compute_svd_factors", lambda call: call["r"]),
    Site("peft.tuners.tinylora.layer", "TinyLoraLayer._init_svd", lambda call: call["r"]),
    Site("peft.tuners.tinylora.layer", "Embedding._init_svd_embedding", lambda call: call["r"]),
    Site("peft.utils.loftq_utils", "_low_rank_decomposition", lambda call: call["reduced_rank"]),
)
