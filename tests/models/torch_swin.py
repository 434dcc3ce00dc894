"""A plain Swin Transformer in PyTorch, window by window, with timm's names."""

import torch
from torch import nn
from torch.nn import functional

WINDOW = 7


class Attention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(13 * 13, heads))

    def forward(self, tokens, places, regions):
        """Tokens [B, N, C] of one window, at `places` [N, 2] within it, of `regions` [N]."""
        batch, count, channels = tokens.shape
        parts = self.qkv(tokens).reshape(batch, count, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) / (channels // self.heads) ** 0.5
        apart = places[:, None] - places[None] + WINDOW - 1
        bias = self.relative_position_bias_table[apart[..., 0] * 13 + apart[..., 1]]
        logits = logits + bias.permute(2, 0, 1)
        logits = logits - 100.0 * (regions[:, None] != regions[None]).to(logits.dtype)
        out = torch.softmax(logits, -1) @ value
        return self.proj(out.transpose(1, 2).reshape(batch, count, channels))


class Mlp(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, channels, heads, shifted):
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn, self.mlp = Attention(channels, heads), Mlp(channels)

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attend(self, x):
        _, height, width, channels = x.shape
        rows, columns = (-(-side // WINDOW) * WINDOW for side in (height, width))
        full = x.new_zeros(len(x), rows, columns, channels)
        full[:, :height, :width] = x
        down, right = (3 if self.shifted and side > WINDOW else 0 for side in (rows, columns))
        out = torch.zeros_like(full)
        for top in range(down, rows + down, WINDOW):
            for left in range(right, columns + right, WINDOW):
                places, where, regions = [], [], []
                for i in range(WINDOW):
                    for j in range(WINDOW):
                        places.append((i, j))
                        where.append(((top + i) % rows, (left + j) % columns))
                        # Beyond the lower and the right end the grid begins anew.
                        regions.append(2 * (top + i >= rows) + (left + j >= columns))
                ys, xs = torch.tensor(where).T
                tokens = full[:, ys, xs]
                seen = self.attn(tokens, torch.tensor(places), torch.tensor(regions))
                out[:, ys, xs] = seen
        return out[:, :height, :width]


class Merging(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x):
        _, height, width, _ = x.shape
        x = functional.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Stage(nn.Module):
    def __init__(self, channels, heads, depth, first):
        super().__init__()
        self.downsample = None if first else Merging(channels // 2)
        self.blocks = nn.ModuleList(Block(channels, heads, i % 2 == 1) for i in range(depth))


class PatchEmbed(nn.Module):
    def __init__(self, bands, channels):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(bands, channels, 4, 4), nn.LayerNorm(channels)


class Swin(nn.Module):
    def __init__(self, bands, channels=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)):
        super().__init__()
        self.patch_embed = PatchEmbed(bands, channels)
        self.layers = nn.ModuleList(
            Stage(channels * 2**i, heads[i], depth, i == 0) for i, depth in enumerate(depths)
        )
        self.norm = nn.LayerNorm(channels * 2 ** (len(depths) - 1))

    def forward(self, images):
        """Images [B, C, H, W] to maps [B, h, w, C]."""
        height, width = images.shape[2:]
        images = functional.pad(images, (0, -width % 4, 0, -height % 4))
        x = self.patch_embed.norm(self.patch_embed.proj(images).permute(0, 2, 3, 1))
        maps = []
        for stage in self.layers:
            if stage.downsample is not None:
                x = stage.downsample(x)
            maps.append(x)
            for block in stage.blocks:
                x = block(x)
        return [*maps[:-1], self.norm(x)]


class Classifier(Swin):
    """As timm's `swin_tiny_patch4_window7_224`: features, pooled, to classes, if there are any."""

    def __init__(self, classes=1000, bands=3, embed_dim=96, img_size=(224, 224)):
        super().__init__(bands, embed_dim)
        self.img_size = img_size
        layer = nn.Linear(8 * embed_dim, classes) if classes else nn.Identity()
        self.head = nn.ModuleDict({"fc": layer})

    def forward(self, images):
        assert images.shape[2:] == self.img_size  # as timm insists
        return self.head["fc"](super().forward(images)[-1].mean((1, 2)))


def randomize(model):
    """Weights of the size that training gives them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                scale = 0.5 if "table" in name else parameter[0].numel() ** -0.5
                parameter.copy_(scale * noise)
            else:
                parameter.copy_(float("norm" in name and name.endswith("weight")) + 0.1 * noise)
    return model


class Expand(nn.Module):
    """Each token to factor x factor of them, by loops."""

    def __init__(self, inputs, channels, factor):
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(inputs, factor**2 * channels, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x, size):
        batch, height, width, _ = x.shape
        parts = self.expand(x).chunk(self.factor**2, -1)
        out = x.new_zeros(batch, height * self.factor, width * self.factor, parts[0].shape[-1])
        for i in range(self.factor):
            for j in range(self.factor):
                out[:, i :: self.factor, j :: self.factor] = parts[i * self.factor + j]
        return self.norm(out[:, : size[0], : size[1]])


class Branch(nn.Module):
    """The decoder of one sensor, with our names."""

    def __init__(self, channels, depths=(2, 2, 6), heads=(3, 6, 12)):
        super().__init__()
        self.depths = depths
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            own = channels * 2**stage
            self.add_module(f"expand{stage + 1}", Expand(2 * own, own, 2))
            self.add_module(f"join{stage + 1}", nn.Linear(2 * own, own))
            for i in range(depth):
                self.add_module(f"stage{stage + 1}_{i}", Block(own, count, i % 2 == 1))
        self.norm = nn.LayerNorm(channels)

    def forward(self, maps):
        *skips, x = maps
        parts = dict(self.named_children())
        for stage in reversed(range(len(skips))):
            x = parts[f"expand{stage + 1}"](x, skips[stage].shape[1:3])
            x = parts[f"join{stage + 1}"](torch.cat([x, skips[stage]], -1))
            for i in range(self.depths[stage]):
                x = parts[f"stage{stage + 1}_{i}"](x)
        return self.norm(x)


class Decoder(nn.Module):
    """Those of two sensors, joined at the end."""

    def __init__(self, channels, classes):
        super().__init__()
        self.branch1, self.branch2 = Branch(channels), Branch(channels)
        self.expand = Expand(2 * channels, 2 * channels, 4)
        self.head = nn.Conv2d(2 * channels, classes, 1, bias=False)

    def forward(self, first, second, size):
        x = torch.cat([self.branch1(first), self.branch2(second)], -1)
        return self.head(self.expand(x, size).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
