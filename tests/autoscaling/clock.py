"""How long in the simulation lasts what takes 15 s, and what takes 1 s, in a router."""

WINDOW_S = 0.24
"""Two requests of the simulated model long, as 15 s are for a model that takes some seconds."""
MEASURED_EACH_S = 0.04
