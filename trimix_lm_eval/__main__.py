"""``python -m trimix_lm_eval …``: the same as the command ``trimix``."""

import sys

from trimix_lm_eval.cli import main

if __name__ == "__main__":
    sys.exit(main())
