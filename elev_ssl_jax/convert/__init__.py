"""Weights: to torchvision, timm, segmentation_models_pytorch, ONNX and Flax, and back to a run."""
