"""Readers with limits for everything that comes from outside: files, options, the environment.

Each bounds size, depth and numbers, and raises the caller's own error type. The room stands below all others.
"""
