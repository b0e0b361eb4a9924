"""Draw the figures from the tidy table: each as SVG and PNG."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report.attention_maps import load_maps
from ..report.figures import Measured, load_spectra, plot
from ..report.rows import load_curves, load_tidy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv plot``."""
    parser.add_argument("--tidy", type=Path, required=True)
    parser.add_argument("--curves", type=Path, nargs="*", default=[], help="loss curves")
    parser.add_argument("--maps", type=Path, nargs="*", default=[], help="attention maps, a model")
    parser.add_argument("--spectra", type=Path, nargs="*", default=[], help="spectra, a model")
    parser.add_argument("--out", type=Path, required=True, help="folder of figures")


def run(args: argparse.Namespace) -> None:
    """Write every figure, as SVG and PNG."""
    measured = Measured(
        load_tidy(args.tidy),
        load_curves(args.curves),
        load_maps(args.maps),
        load_spectra(args.spectra),
    )
    plot(measured, args.out)
