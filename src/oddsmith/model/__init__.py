"""Loading, adapters, log-probabilities of pairs, generation."""

from ..system.memory import keep_few_kernels

keep_few_kernels()
