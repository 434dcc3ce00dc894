"""ResNets and a U-Net in plain PyTorch, with torchvision's names: the reference."""

import torch
from torch import nn

from benchmarks.torch_peer import BasicBlock


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


class Classifier(ResNet):
    """As torchvision's `resnet18()`: features, pooled, to classes."""

    def __init__(self, classes=1000, **arguments):
        super().__init__(**arguments)
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        return self.fc(super().forward(x)[-1].mean((2, 3)))


class UNet(nn.Module):
    """As segmentation_models_pytorch's `Unet("resnet18")`, by its names and sizes."""

    def __init__(self, classes):
        super().__init__()
        self.encoder = ResNet()
        sizes = [(512 + 256, 256), (256 + 128, 128), (128 + 64, 64), (64 + 64, 32), (32, 16)]
        blocks = [nn.ModuleDict({"conv1": conv(a, b), "conv2": conv(b, b)}) for a, b in sizes]
        self.decoder = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        self.segmentation_head = nn.Sequential(nn.Conv2d(16, classes, 3, padding=1))

    def forward(self, x):
        *skips, x = self.encoder(x)
        for i, block in enumerate(self.decoder["blocks"]):
            x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
            if i < 4:
                x = torch.cat([x, skips[-1 - i]], dim=1)
            x = block["conv2"](block["conv1"](x))
        return self.segmentation_head(x)


def conv(inputs, channels):
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def randomize(model):
    """Random running statistics, scales and shifts, which training would leave behind."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
                module.running_mean.uniform_(-0.5, 0.5)
    return model


def tensors(model):
    """The state dictionary in NumPy."""
    return {name: value.numpy() for name, value in model.state_dict().items()}
