"""The version of the program, which its door, its files and its folders name."""

__version__ = "0.1.0"
