"""Layer 2: Phi-4-reasoning-plus, its prompt, its history, its context. Flows."""
