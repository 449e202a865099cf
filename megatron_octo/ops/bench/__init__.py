"""`octo bench logprob`: the token operators against other implementations, on the same tensors in one run."""
