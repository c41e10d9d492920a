"""Measurements, run by `make bench`; they print ratios and judge nothing."""
