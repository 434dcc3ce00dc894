"""Dual-SimCLR in PyTorch: the peer of `two_sensor_step.py`.

The same architecture, squares and loss as here; data on the device, a whole batch at once, fused
attention; on a GPU bfloat16 autocast. It knows nothing of JAX.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch_peer import BasicBlock, nt_xent

WINDOW = 7


class ResNet18(nn.Module):
    """To the mean of the last map."""

    def __init__(self, bands: int, width: float):
        super().__init__()
        c = [round(64 * width * 2**i) for i in range(4)]
        self.channels = c[3]
        self.stem = nn.Sequential(
            nn.Conv2d(bands, c[0], 7, 2, 3, bias=False),
            nn.BatchNorm2d(c[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.layers = nn.Sequential(
            *(
                BasicBlock(c[max(i - 1 + j, 0)] if j == 0 else c[i], c[i], 2 if i and not j else 1)
                for i in range(4)
                for j in (0, 1)
            )
        )

    def forward(self, x):
        """[B, bands, H, W] to [B, channels]."""
        return self.layers(self.stem(x)).mean((2, 3))


class Block(nn.Module):
    """Swin's block, all windows at once."""

    def __init__(self, channels: int, heads: int, side: int, shifted: bool, drop: float):
        super().__init__()
        self.heads, self.side, self.drop = heads, side, drop
        self.shift = WINDOW // 2 if shifted and side > WINDOW else 0
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.table = nn.Parameter(0.02 * torch.randn((2 * WINDOW - 1) ** 2, heads))
        rows, columns = torch.arange(WINDOW**2) // WINDOW, torch.arange(WINDOW**2) % WINDOW
        apart = (rows[:, None] - rows + WINDOW - 1) * (2 * WINDOW - 1)
        self.register_buffer("places", apart + columns[:, None] - columns + WINDOW - 1)
        region = torch.zeros(side, side)
        if self.shift:
            ends = (slice(0, -WINDOW), slice(-WINDOW, -self.shift), slice(-self.shift, None))
            for i, (row, column) in enumerate((r, c) for r in ends for c in ends):
                region[row, column] = i
        region = self.windows(region[None, ..., None])[..., 0]
        self.register_buffer("mask", -100.0 * (region[:, :, None] != region[:, None]).float())

    def windows(self, x):
        """[B, H, W, C] to [B * windows, 49, C]."""
        n = self.side // WINDOW
        x = x.reshape(-1, n, WINDOW, n, WINDOW, x.shape[-1]).transpose(2, 3)
        return x.reshape(-1, WINDOW**2, x.shape[-1])

    def attend(self, x):
        """[B, H, W, C] to the same."""
        batch, n = len(x), self.side // WINDOW
        x = self.windows(x.roll((-self.shift, -self.shift), (1, 2)))
        q, k, v = self.qkv(x).reshape(len(x), WINDOW**2, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places].permute(2, 0, 1)
        bias = (bias + self.mask[:, None]).to(q.dtype).repeat(batch, 1, 1, 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = self.proj(x.transpose(1, 2).flatten(2))
        x = x.reshape(batch, n, n, WINDOW, WINDOW, -1).transpose(2, 3)
        x = x.reshape(batch, self.side, self.side, -1)
        return x.roll((self.shift, self.shift), (1, 2))

    def kept(self, x):
        """A residual, left out for some samples."""
        if self.drop == 0:
            return x
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) < 1 - self.drop
        return x * keep / (1 - self.drop)

    def forward(self, x):
        """[B, H, W, C] to the same."""
        x = x + self.kept(self.attend(self.norm1(x)))
        return x + self.kept(self.mlp(self.norm2(x)))


class Merge(nn.Module):
    """Four neighbours to one token of twice the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x):
        """[B, H, W, C] to [B, H / 2, W / 2, 2 C]."""
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Swin-T, to the mean of its last tokens."""

    def __init__(self, bands: int, width: float, size: int):
        super().__init__()
        first = 3 * round(32 * width)
        self.channels = 8 * first
        self.embed, self.norm0 = nn.Conv2d(bands, first, 4, 4), nn.LayerNorm(first)
        layers: list[nn.Module] = []
        rates = iter(torch.linspace(0, 0.1, 12).tolist())
        for stage, (depth, heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24), strict=True)):
            channels, side = first * 2**stage, size // 4 // 2**stage
            layers += [Block(channels, heads, side, i % 2 == 1, next(rates)) for i in range(depth)]
            if stage < 3:
                layers.append(Merge(channels))
        self.layers, self.norm = nn.Sequential(*layers), nn.LayerNorm(8 * first)

    def forward(self, x):
        """[B, bands, H, W] to [B, channels]."""
        x = self.norm0(self.embed(x).permute(0, 2, 3, 1))
        return self.norm(self.layers(x)).mean((1, 2))


class Dual(nn.Module):
    """An encoder and a head for each sensor."""

    def __init__(self, encoder: str, size: int, width: float):
        super().__init__()
        self.encoders = nn.ModuleList(
            Swin(bands, width, size) if encoder == "swin_t" else ResNet18(bands, width)
            for bands in (2, 13)
        )
        hidden = {"swin_t": 768, "resnet18": 512}[encoder]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(e.channels, hidden), nn.ReLU(), nn.Linear(hidden, 128))
            for e in self.encoders
        )

    def forward(self, s1, s2):
        """Embeddings of both sensors."""
        return [h(e(x)) for h, e, x in zip(self.heads, self.encoders, (s1, s2), strict=True)]


def make_step(chips, batch_size: int, device: str, width: float, size: int, encoder: str):
    """A function that trains one step more and returns its loss.

    Args:
      chips: `s1` float32 [N, H, W, 2] in dB and `s2` uint16 [N, H, W, 13], in NumPy.
      batch_size: Chips in a step.
      device: "cpu" or "cuda".
      width: Multiplies the channels.
      size: Side of the squares.
      encoder: "resnet18" or "swin_t".
    """
    on_gpu = device == "cuda"
    s1 = torch.from_numpy(chips["s1"]).to(device).permute(0, 3, 1, 2)
    s2 = torch.from_numpy(chips["s2"].astype("int32")).to(device).permute(0, 3, 1, 2)
    s2 = s2.to(torch.int16)
    model = Dual(encoder, size, width).to(device)
    if encoder == "resnet18":
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.0, fused=on_gpu or None)

    def scaled(x, low, high):
        x = x.float().clamp(low, high) - low
        x = x / (x.amax((2, 3), keepdim=True) + 1e-5)
        return x.contiguous(memory_format=torch.channels_last)

    def step():
        index = torch.randint(len(s1), (batch_size,), device=device)
        tops, lefts = torch.randint(s1.shape[2] - size + 1, (2, batch_size)).tolist()
        places = [*zip(index.tolist(), tops, lefts, strict=True)]
        cut = [
            torch.stack([x[i, :, top : top + size, left : left + size] for i, top, left in places])
            for x in (s1, s2)
        ]
        views = scaled(cut[0], -25, 0), scaled(cut[1], 0, 10000)
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            z1, z2 = model(*views)
        loss = nt_xent(z1, z2, 0.2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
