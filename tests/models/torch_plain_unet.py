"""The U-Net of github.com/milesial/Pytorch-UNet, bilinear, in plain PyTorch with our names.

Whoever makes it says how many channels go into each step up and come out of it.
"""

import torch
from torch import nn


class DoubleConv(nn.Module):
    def __init__(self, inputs, middle, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)))


class Encoder(nn.Module):
    def __init__(self, bands, base):
        super().__init__()
        self.block1 = DoubleConv(bands, base, base)
        self.block2 = DoubleConv(base, 2 * base, 2 * base)
        self.block3 = DoubleConv(2 * base, 4 * base, 4 * base)
        self.block4 = DoubleConv(4 * base, 8 * base, 8 * base)
        self.block5 = DoubleConv(8 * base, 8 * base, 8 * base)

    def forward(self, x):
        maps = [self.block1(x)]
        for block in (self.block2, self.block3, self.block4, self.block5):
            maps.append(block(nn.functional.max_pool2d(maps[-1], 2)))
        return maps


class Decoder(nn.Module):
    def __init__(self, steps, classes):
        super().__init__()
        for i, (inputs, outputs) in enumerate(steps):
            self.add_module(f"up{i + 1}", DoubleConv(inputs, inputs // 2, outputs))
        self.head = nn.Conv2d(steps[-1][1], classes, 1)

    def forward(self, maps):
        *skips, x = maps
        for i, skip in enumerate(reversed(skips)):
            block = self.get_submodule(f"up{i + 1}")
            x = block(torch.cat([skip, self.enlarged(x, skip)], dim=1))
        return self.head(x)

    @staticmethod
    def enlarged(x, skip):
        if x.shape[2] * 2 > skip.shape[2] or x.shape[3] * 2 > skip.shape[3]:
            # Not in the original, whose encoder rounds down.
            sides = [min(2 * a, b) for a, b in zip(x.shape[2:], skip.shape[2:], strict=True)]
            x = nn.functional.interpolate(x, sides, mode="bilinear", align_corners=True)
        else:
            x = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)(x)
        rows, columns = (b - a for a, b in zip(x.shape[2:], skip.shape[2:], strict=True))
        return nn.functional.pad(
            x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
        )


class UNet(nn.Module):
    """`base` is 64 in the original."""

    def __init__(self, bands, classes, base):
        super().__init__()
        self.encoder = Encoder(bands, base)
        steps = ((16, 4), (8, 2), (4, 1), (2, 1))
        self.decoder = Decoder([(a * base, b * base) for a, b in steps], classes)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class DoubleUNet(nn.Module):
    """An encoder for each of two sensors, whose maps are joined at every level."""

    def __init__(self, bands, classes, base):
        super().__init__()
        self.bands = list(bands.values())
        encoders = {name: Encoder(count, base) for name, count in bands.items()}
        self.encoder = nn.ModuleDict(encoders)
        steps = ((32, 8), (16, 4), (8, 2), (4, 2))
        self.decoder = Decoder([(a * base, b * base) for a, b in steps], classes)

    def forward(self, x):
        parts = torch.split(x, self.bands, dim=1)
        branches = [e(part) for e, part in zip(self.encoder.values(), parts, strict=True)]
        return self.decoder([torch.cat(level, dim=1) for level in zip(*branches, strict=True)])
