"""A DDP job that every rank of is in TensorBoard. torchrun runs it.

torchrun --nproc-per-node 2 --rdzv-id my-job examples/ddp_training.py
tensorboard --logdir runs
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ranktap

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
tap = ranktap.init(logdir="runs")
tap.watch(model, every=10)

data = torch.Generator().manual_seed(dist.get_rank())
for step in range(200):
    tap.step(step)
    inputs = torch.randn(64, 8, generator=data)
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    tap.scalar("loss", loss)

tap.close()
dist.destroy_process_group()
