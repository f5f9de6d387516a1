"""Where mergekit decomposes weights: mergekit-extract-lora. Not covered: tokensurgeon, which uses all vectors.

Checked against mergekit 0.1.5 (mergekit/scripts/extract_lora.py).
"""

from __future__ import annotations

from laser_kernels.compat.cut import Site

# sv_epsilon can only shorten what max_rank allows.
SITES = (
    Site("mergekit.scripts.extract_lora", "TaskVectorDecompositionTask.execute", lambda call: call["self"].max_rank),
)
