"""The GPU path, on a real device or on the pretended one; without either nothing here is collected.

`python -m pretend pytest tests/gpu` with tests/ in PYTHONPATH; tests/test_gpu_path.py does that.
"""

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
