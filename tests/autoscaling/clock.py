"""The times of the routers' demand meter in the simulation, in place of 15 s and 1 s."""

WINDOW_S = 0.24
"""Over which demand is measured: two requests of the simulated model long. A real model takes some seconds for one."""
MEASURED_EACH_S = 0.04
