"""Timing of implementations of the same task side by side, each in a process of its own."""
