"""The networks, as Flax modules: encoders, U-Nets, classifier and heads."""
