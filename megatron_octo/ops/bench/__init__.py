"""`octo bench logprob`: the token operators against the field, on the same tensors in one run."""
