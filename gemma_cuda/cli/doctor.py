"""`gemma-cuda doctor`: what this machine can run, and what to install for the rest."""

import argparse

from ..device import doctor
from . import common


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine can run, and what to install for the rest",
        description="Look at driver, GPU, CuPy, NVRTC, C++ compiler, emulator and NumPy. Exit code 0 if models can run "
        "on NumPy, 2 if not.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    findings = doctor.examine()
    for finding in findings:
        print(f"{finding.state.value:<8} {finding.subject:<17} {finding.detail}")
    remedies = [f"{finding.subject}: {finding.remedy}" for finding in findings if finding.remedy is not None]
    if remedies:
        print("\nwhat to do")
        for remedy in remedies:
            print(f"  {remedy}")
    return 0 if doctor.numpy_works(findings) else 2
