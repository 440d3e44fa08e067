"""What ranktap costs and carries, beside torch's SummaryWriter: `python -m benchmarks --help`."""
