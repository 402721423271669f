"""What `make fuzz` runs: the property tests and the fuzzed files, again and again with other examples.

    python tests/fuzz.py [pytest's arguments]

Each round draws from a seed that is printed; `pytest FILE --hypothesis-profile=fuzz --hypothesis-seed=SEED` draws the
same again. MASKFUSE_FUZZ_MINUTES says for how long rounds are begun: 10.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    asked = os.environ.get("MASKFUSE_FUZZ_MINUTES", "10")
    try:
        end = time.monotonic() + 60 * float(asked)
    except ValueError:
        print(f"MASKFUSE_FUZZ_MINUTES must be a number, got {asked!r}", file=sys.stderr)
        return 2
    files = sorted(str(p) for pattern in ("test_properties_*.py", "test_fuzzed_*.py") for p in TESTS.glob(pattern))
    rounds = 0
    while rounds == 0 or time.monotonic() < end:
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"round {rounds + 1}, seed {seed}", flush=True)
        options = ["-x", "--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}"]
        status = subprocess.run([sys.executable, "-m", "pytest", *files, *options, *arguments]).returncode
        if status != 0:
            print(f"failed in round {rounds + 1}: --hypothesis-profile=fuzz --hypothesis-seed={seed}")
            return status
        rounds += 1
    print(f"{rounds} rounds without a failure")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
