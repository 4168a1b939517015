"""Triton kernels without a GPU: run by Triton's interpreter, and compiled for cards that are not here."""
