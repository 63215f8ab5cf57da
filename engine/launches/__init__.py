"""What one step starts on a GPU, found without one: run on meta tensors, recorded, and tabled.

`python -m engine.launches budget` prints what a step moves and computes, and how long that takes at
least; `python -m engine.launches compile` compiles every kernel that a step starts, for every
target, and prints what the compiler made of it.
"""

from engine.launches.record import Started, TorchOp, record_layer, record_step

__all__ = ["Started", "TorchOp", "record_layer", "record_step"]
