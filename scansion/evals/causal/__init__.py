"""The causal effect of position-bound features: ablated and steered where they fire, and elsewhere."""
