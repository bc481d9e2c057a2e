"""Times fasterquant of the GPTQ authors' code (github.com/IST-DASLab/gptq), which is not part of this repository.

    gptq_speed.py FOLDER WIDTH THREADS

FOLDER holds gptq.py and quant.py. A WIDTH×WIDTH layer is quantized to 4 bits in groups of 128, from 8192 Gaussian tokens
whose channels have sizes from 0.5 to 1.5. Prints seconds from the Hessian to the weights.
"""

import contextlib
import io
import sys
import time
import types

import torch

folder, width, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, folder)
torch.set_num_threads(threads)
torch.manual_seed(0)

# All that gptq.py wants of transformers is the name of a class that no layer here has.
if "transformers" not in sys.modules:
    stub = types.ModuleType("transformers")
    stub.Conv1D = type("Conv1D", (), {})
    sys.modules["transformers"] = stub

with contextlib.redirect_stdout(io.StringIO()):
    from gptq import GPTQ
    from quant import Quantizer

    layer = torch.nn.Linear(width, width, bias=False)
    inputs = torch.randn(1, 8192, width) * (0.5 + torch.rand(width))
    gptq = GPTQ(layer)
    gptq.add_batch(inputs, None)
    gptq.quantizer = Quantizer()
    gptq.quantizer.configure(4, perchannel=True, sym=False, mse=False)
    start = time.perf_counter()
    gptq.fasterquant(blocksize=128, percdamp=0.01, groupsize=128)
    seconds = time.perf_counter() - start
print(f"{seconds:.3f}")
