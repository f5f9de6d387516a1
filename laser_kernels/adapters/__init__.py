"""LoRA adapters in the forms that other tools read and write."""

from laser_kernels.adapters.factors import Factors
from laser_kernels.adapters.peft import write_peft

__all__ = ["Factors", "write_peft"]
