"""Self-supervised pre-training of satellite-image encoders that also learn to predict elevation."""
