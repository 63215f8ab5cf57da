"""A pytest plugin, for collecting only: as if there were a GPU (`-p tests.engine.gpu.pretend`)."""

import torch

torch.cuda.is_available = lambda: True
