"""The PyTorch side of `throughput.py`, run by an interpreter that has PyTorch and nothing of ours."""

import os
import sys

import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models.googlenet import BasicConv2d
from turns import serve

MODES = {"torch.compile": "default", "torch.compile, CUDA graphs": "reduce-overhead"}


class Block(nn.Module):
    """Two 3×3 convolutions, with shortcut A if `residual`."""

    def __init__(self, channels, filters, stride, residual):
        super().__init__()
        self.stride, self.added, self.residual = stride, filters - channels, residual
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)

    def forward(self, x):
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)), inplace=True)))
        if self.residual:
            if self.added:
                pad = self.added // 2, self.added - self.added // 2
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *pad))
            y = y + x
        return functional.relu(y, inplace=True)


def cifar_network(depth, residual, num_classes):
    """The CIFAR form (He et al. 2015, section 4.2)."""
    layers, channels = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)], 16
    for stage, filters in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            layers.append(Block(channels, filters, 2 if stage and not block else 1, residual))
            channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def network(name, side, num_classes):
    """The network of this name in plain56, in the form for images of this size."""
    if name == "vgg16_bn":
        features = torchvision.models.vgg16_bn().features
        return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))
    if name == "googlenet_bn":
        model = torchvision.models.googlenet(num_classes=num_classes, aux_logits=False, init_weights=False)
        model.conv1 = BasicConv2d(3, 64, kernel_size=3, padding=1)
        model.maxpool1 = model.maxpool2 = model.dropout = nn.Identity()
        return model
    if side == 32:
        family = "resnet" if name.startswith("resnet") else "plain"
        return cifar_network(int(name.removeprefix(family)), family == "resnet", num_classes)
    return getattr(torchvision.models, name)(num_classes=num_classes)


def main():
    """Builds the network that the command line names, and takes turns."""
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # as XLA does
    program, name, device, *numbers = sys.argv[1:]
    batch_size, side, num_classes, repeats = map(int, numbers)
    on_gpu = device == "gpu"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU that it can use")
    torch.backends.cudnn.benchmark = True  # only of the GPU
    place = "cuda" if on_gpu else "cpu"
    model = network(name, side, num_classes).to(place, memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, side, side).to(place, memory_format=torch.channels_last)
    labels = torch.randint(num_classes, (batch_size,)).to(place)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    run = torch.compile(model, mode=MODES[program]) if program in MODES else model

    def logits():
        with torch.autocast(place, torch.bfloat16, enabled=on_gpu):
            return run(images)

    def step():
        model.train()
        for _ in range(repeats):
            optimizer.zero_grad()
            functional.cross_entropy(logits().float(), labels).backward()
            optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()

    def forward():
        model.eval()
        with torch.no_grad():
            for _ in range(repeats):
                logits()
        if on_gpu:
            torch.cuda.synchronize()

    serve({"torch": torch.__version__, "torchvision": torchvision.__version__}, {"step": step, "forward": forward}, repeats)


if __name__ == "__main__":
    main()
