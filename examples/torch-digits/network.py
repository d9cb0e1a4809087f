"""A small convolutional network in torch that reads digits of 8 by 8 pixels.

A model is what ``state_dict`` gives: ten tensors by name, among them the counter of batches that the normalisation
keeps, an int64. Weights of sites are averaged, and so is all that the normalisation has seen of their data.
"""

import torch
from safetensors.torch import load_file, save_file
from torch import nn


def new_network(seed=0):
    """Return an untrained network; the same seed gives the same one."""
    torch.manual_seed(seed)
    # Digits are small and sites many: more threads than one only get in each other's way.
    torch.set_num_threads(1)
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def load_network(path):
    """Return the network with the weights that are in a .safetensors file."""
    network = new_network()
    network.load_state_dict(load_file(path))
    return network


def save_network(path, network):
    """Write the weights of the network as a .safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)


def as_images(x):
    """Return float32[n, 64] of numpy as the images [n, 1, 8, 8] that the network takes."""
    return torch.from_numpy(x).reshape(-1, 1, 8, 8)


def train(network, x, y, *, epochs=2, lr=0.05, batch_size=16, seed=0):
    """Train in place on x float32[n, 64] in 0..1 and y int64[n] in 0..9; the same call gives the same weights."""
    images, labels = as_images(x), torch.from_numpy(y)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    random = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=random)
        for batch in order.split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def evaluate(network, x, y):
    """Return accuracy and mean cross-entropy on x float32[n, 64], y int64[n], as plain floats."""
    network.eval()
    scores, labels = network(as_images(x)), torch.from_numpy(y)
    return {
        "accuracy": (scores.argmax(dim=1) == labels).float().mean().item(),
        "loss": nn.functional.cross_entropy(scores, labels).item(),
    }
