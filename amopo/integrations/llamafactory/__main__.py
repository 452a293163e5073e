"""`llamafactory-cli` after `install()`: `python -m amopo.integrations.llamafactory train x.yaml`."""

from __future__ import annotations

import sys

from amopo.integrations.llamafactory.installation import install


def main() -> None:
    try:
        install()
    except (ImportError, RuntimeError) as error:
        sys.exit(f"amopo: {error}")
    from llamafactory.cli import main as host

    host()


if __name__ == "__main__":
    main()
