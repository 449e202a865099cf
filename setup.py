"""Build hooks. Everything declarative is in pyproject.toml; compiled operators will be declared here."""

from setuptools import setup

setup()
