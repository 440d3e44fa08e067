"""Every rank of a distributed PyTorch job on one TensorBoard."""
