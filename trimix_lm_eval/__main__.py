"""``python -m trimix_lm_eval …``, and what the command ``trimix`` calls."""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command; Ctrl-C while it is still being imported ends as it does later."""
    try:
        from trimix_lm_eval import cli

        return cli.main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
