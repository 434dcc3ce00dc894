"""ResNets in plain PyTorch, with torchvision's architecture and names: the reference."""

import torch
from torch import nn


class BasicBlock(nn.Module):
    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or inputs != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = None
        if stride != 1 or inputs != 4 * channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * channels, 1, stride, bias=False),
                nn.BatchNorm2d(4 * channels),
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, stage_sizes=(2, 2, 2, 2), block=BasicBlock, bands=3):
        super().__init__()
        self.conv1 = nn.Conv2d(bands, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(stage_sizes):
            channels, blocks = 64 * 2**stage, []
            for i in range(count):
                blocks.append(block(inputs, channels, 2 if stage and i == 0 else 1))
                inputs = channels * (4 if block is Bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        maps = [x]
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


def to_flax(model):
    """The model's weights as our variables."""
    params, stats = {}, {}
    for name, value in model.state_dict().items():
        value = value.numpy()
        *path, kind = (
            name.replace("downsample.0", "downsample_conv")
            .replace("downsample.1", "downsample_bn")
            .split(".")
        )
        if path[0].startswith("layer"):
            path = [f"{path[0]}_{path[1]}", *path[2:]]
        where, leaf, value = {
            ("weight", 4): (
                params,
                "kernel",
                value.transpose(2, 3, 1, 0) if value.ndim == 4 else 0,
            ),
            ("weight", 1): (params, "scale", value),
            ("bias", 1): (params, "bias", value),
            ("running_mean", 1): (stats, "mean", value),
            ("running_var", 1): (stats, "var", value),
        }.get((kind, value.ndim), (None, None, None))
        if where is not None:
            for part in path:
                where = where.setdefault(part, {})
            where[leaf] = value
    return {"params": params, "batch_stats": stats}
