"""Flow-matching language models: text from noise, all positions at once, in one network evaluation or in many."""

__version__ = "0.1.0"
