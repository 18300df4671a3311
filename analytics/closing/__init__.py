"""Closing hours in processes of their own, so that no hour can take the worker with it; ADR "An hour in a process of its own"."""
