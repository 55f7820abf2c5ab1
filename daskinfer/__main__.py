"""`python -m daskinfer`."""

from __future__ import annotations

from daskinfer.cli import main

if __name__ == "__main__":
    main()
