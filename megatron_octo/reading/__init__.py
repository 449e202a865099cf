"""Readers with limits for all input from outside: files, options, the environment.

Each bounds size, depth and numbers, and raises the caller's own error type. This package imports no other one of ours
but `errors`.
"""
