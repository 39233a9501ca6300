"""Layer 1: LM Studio and its models in memory. Flows."""
