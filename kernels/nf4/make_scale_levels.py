"""Writes scale_levels.inc: the 256 levels of bitsandbytes' signed dynamic map, as floats that read back to the same bits.

.venv/bin/python kernels/nf4/make_scale_levels.py
"""

import pathlib

from bitsandbytes.functional import create_dynamic_map

levels = [f"{value.hex()}f" for value in create_dynamic_map().tolist()]
lines = ["    " + ", ".join(levels[i : i + 4]) + "," for i in range(0, 256, 4)]
target = pathlib.Path(__file__).parent / "scale_levels.inc"
target.write_text("// Written by make_scale_levels.py.\n" + "\n".join(lines) + "\n")
