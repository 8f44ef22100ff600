"""What a machine has to compute with: devices, processes that share a training, threads, memory.

device.py   which device to compute on
ranks.py    several processes that train one run together
threads.py  computing in a thread that ends at once
memory.py   what says that memory ran out; the kernel's kills

May import parameters and what lies below it. `memory.py` is read by the service too and imports no torch.
"""
