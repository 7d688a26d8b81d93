"""Train one specialist per bone, global baselines and a bone router; report which is better. Start here.

python run_study.py --all-bones [--data PATH]
"""

import sys

from orchestrator.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command())
