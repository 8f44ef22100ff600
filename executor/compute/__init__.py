"""What a machine computes with: devices, processes that train together, threads, memory.

device.py   which device to compute on
ranks.py    several processes that train one run together
cores.py    how many cores this process may use
threads.py  runs a computation in a thread that ends right after it
one_core_each.py  threads that compute side by side, each with one core
turns.py    a queue that serves its callers in turn
memory.py   keep freed memory; whether memory ran out, and whether the kernel killed a process for it

May import parameters and the layers below it. The service uses `cores.py`, `memory.py`, `turns.py`
and `one_core_each.py` too, so they import no torch.
"""
