"""SimCLR+Elevation in PyTorch, twice: the peers of `pretrain_step.py` and `epoch.py`.

`make_step` is as fast as we could write it: the same architecture, views and loss as here; data
and augmentation on the device, a whole batch at once, channels last; on a GPU bfloat16 autocast
and `torch.compile`. `make_reference_step` is what people run: workers that augment one chip after
the other with torchvision, float32. It knows nothing of JAX.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, channels: int, stride: int):
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
        """[B, inputs, H, W] to [B, channels, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Up(nn.Module):
    """The U-Net's block: upsample, join, twice convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for n in (inputs, channels):
            layers += [
                nn.Conv2d(n, channels, 3, 1, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x, size, skip):
        """`x` upsampled to `size`, beside `skip` if there is one."""
        x = F.interpolate(x, size=size, mode="nearest")
        return self.layers(x if skip is None else torch.cat([x, skip], dim=1))


class Model(nn.Module):
    """ResNet18, a projection head, and a U-Net decoder to elevation."""

    def __init__(self, cells: int, width: float = 1.0):
        super().__init__()
        c = [round(64 * width * 2**i) for i in range(4)]
        self.conv1 = nn.Conv2d(3, c[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(c[0])
        self.layers = nn.ModuleList(
            nn.Sequential(
                BasicBlock(c[max(i - 1, 0)], c[i], 2 if i else 1),
                BasicBlock(c[i], c[i], 1),
            )
            for i in range(4)
        )
        self.head = nn.Sequential(
            nn.Linear(c[3], 512, bias=False),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(512),
            nn.Linear(512, 128, bias=False),
        )
        d = [max(8, round(n * width)) for n in (256, 128, 64, 32)]
        skips = [c[2], c[1], c[0], 0]
        self.ups = nn.ModuleList(
            Up(n + s, o) for n, s, o in zip([c[3], *d[:3]], skips, d, strict=True)
        )
        self.out = nn.Conv2d(d[3], 1, 3, 1, 1)
        self.cells = cells

    def encode(self, x):
        """The maps at strides 4 to 32."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, view1, view2, view3):
        """Embeddings of the first two views, elevation of the third, each by itself."""
        z1, z2 = (self.head(self.encode(v)[-1].mean((2, 3))) for v in (view1, view2))
        *skips, x = self.encode(view3)
        sizes = [*(tuple(s.shape[2:]) for s in reversed(skips)), (self.cells, self.cells)]
        for up, size, skip in zip(self.ups, sizes, [*reversed(skips), None], strict=True):
            x = up(x, size, skip)
        return z1, z2, self.out(x)[:, 0]


def nt_xent(z1, z2, temperature=0.5):
    """NT-Xent in float32."""
    z = F.normalize(torch.cat([z1, z2]).float())
    count = len(z1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(-math.inf)
    target = torch.arange(2 * count, device=z.device).roll(count)
    return F.cross_entropy(similarity, target)


def jitter(x, brightness, contrast, saturation, hue, probability, grayscale):
    """Colour jitter and grayscale of images [B, 3, H, W] in 0..1, each drawn for itself."""
    count, device = len(x), x.device

    def draw(low, high):
        return torch.empty(count, 1, 1, 1, device=device).uniform_(low, high)

    def gray(x):
        return (x * x.new_tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)

    y = (x * draw(1 - brightness, 1 + brightness)).clamp(0, 1)
    mean = gray(y).mean((2, 3), keepdim=True)
    y = mean.lerp(y, draw(1 - contrast, 1 + contrast)).clamp(0, 1)
    y = gray(y).lerp(y, draw(1 - saturation, 1 + saturation)).clamp(0, 1)
    r, g, b = y.unbind(1)
    top, bottom = y.amax(1), y.amin(1)
    spread = (top - bottom).clamp_min(1e-8)
    h = torch.where(
        top == r,
        (g - b) / spread,
        torch.where(top == g, 2 + (b - r) / spread, 4 + (r - g) / spread),
    )
    h = (h / 6 + draw(-hue, hue)[:, 0]) % 1.0
    offsets = x.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    k = (offsets + 6 * h[:, None]) % 6
    y = top[:, None] - (top - bottom)[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)
    x = torch.where(draw(0, 1) < probability, y, x)
    return torch.where(draw(0, 1) < grayscale, gray(x), x)


def flips(x, *more):
    """Both flips of images, and of what goes with them [B, h, w], each drawn for itself."""
    for axis in (-1, -2):
        flip = torch.rand(len(x), device=x.device) < 0.5
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(axis), x)
        more = tuple(torch.where(flip.view(-1, 1, 1), m.flip(axis), m) for m in more)
    return (x, *more)


def crop(x, scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3)):
    """A random resized crop with flips, in one resampling."""
    count, device = len(x), x.device

    def draw(low, high):
        return torch.empty(count, device=device).uniform_(low, high)

    area, aspect = draw(*scale), torch.exp(draw(math.log(ratio[0]), math.log(ratio[1])))
    w, h = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    theta = torch.zeros(count, 2, 3, device=device)
    signs = [1 - 2 * (draw(0, 1) < 0.5).float() for _ in range(2)]
    theta[:, 0, 0], theta[:, 1, 1] = w * signs[0], h * signs[1]
    theta[:, 0, 2], theta[:, 1, 2] = (1 - w) * draw(-1, 1), (1 - h) * draw(-1, 1)
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


def make_step(chips, batch_size: int, device: str, width: float = 1.0, compiled: bool = False):
    """A function that trains one step more and returns its loss.

    Args:
      chips: `image` uint16 [N, H, W, 3] and `elevation` float32 [N, h, w], in NumPy.
      batch_size: Chips in a step.
      device: "cpu" or "cuda".
      width: Multiplies the channels.
      compiled: Whether `torch.compile` is asked.
    """
    on_gpu = device == "cuda"
    image = torch.from_numpy(chips["image"].astype("int32")).to(device)
    image = image.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).to(torch.int16)
    elevation = torch.from_numpy(chips["elevation"]).to(device)
    model = Model(elevation.shape[1], width).to(device, memory_format=torch.channels_last)

    def loss_of(index):
        x = image[index].float().clamp(0, 6000) / 6000
        strong = (0.4, 0.4, 0.4, 0.2, 0.5, 0.2)
        views = [jitter(crop(x), *strong) for _ in range(2)]
        third, target = flips(x, elevation[index] / 500)
        views.append(jitter(third, 0.2, 0.2, 0.2, 0.2, 0.3, 0.2))
        views = [v.contiguous(memory_format=torch.channels_last) for v in views]
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            return objective(model, *views, target)

    if compiled:
        loss_of = torch.compile(loss_of)
    optimizer = adamw(model, fused=on_gpu or None)
    return lambda: update(
        optimizer, loss_of(torch.randint(len(image), (batch_size,), device=device))
    )


class Views(torch.utils.data.Dataset):
    """Three views of a chip and its elevation, by torchvision's transforms."""

    def __init__(self, chips):
        from torchvision import transforms as T

        self.chips, size = chips, chips["image"].shape[1]
        self.crop = T.RandomResizedCrop(size, scale=(0.7, 1.0), antialias=True)
        self.flips = T.Compose([T.RandomHorizontalFlip(), T.RandomVerticalFlip()])
        self.strong, self.weak = (
            T.Compose(
                [
                    T.RandomApply([T.ColorJitter(*strengths)], probability),
                    T.RandomGrayscale(0.2),
                ]
            )
            for strengths, probability in (((0.4, 0.4, 0.4, 0.2), 0.5), ((0.2,) * 4, 0.3))
        )

    def __len__(self):
        return len(self.chips["image"])

    def __getitem__(self, i):
        x = torch.from_numpy(self.chips["image"][i].astype("float32")).permute(2, 0, 1)
        x = x.clamp(0, 6000) / 6000
        target = torch.from_numpy(self.chips["elevation"][i]) / 500
        pair = [self.strong(self.flips(self.crop(x))) for _ in range(2)]
        for axis in (-1, -2):
            if torch.rand(()) < 0.5:
                x, target = x.flip(axis), target.flip(axis)
        return *pair, self.weak(x), target


def make_reference_step(chips, batch_size: int, device: str, width: float, workers: int):
    """As `make_step`, with a `DataLoader` of so many workers."""
    model = Model(chips["elevation"].shape[1], width).to(device)
    optimizer = adamw(model)
    loader = torch.utils.data.DataLoader(
        Views(chips),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=device == "cuda",
    )

    def epochs():
        while True:
            yield from loader

    batches = epochs()

    def step():
        batch = [array.to(device, non_blocking=True) for array in next(batches)]
        return update(optimizer, objective(model, *batch))

    return step


def objective(model, view1, view2, view3, target):
    """The loss, half elevation and half NT-Xent."""
    z1, z2, predicted = model(view1, view2, view3)
    with torch.autocast(view1.device.type, enabled=False):
        return 0.5 * F.mse_loss(predicted.float(), target) + 0.5 * nt_xent(z1, z2)


def adamw(model, **how):
    """The optimizer."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, **how)


def update(optimizer, loss):
    """One step; the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()
