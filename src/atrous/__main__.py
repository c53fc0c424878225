"""``python -m atrous`` is the command ``atrous``."""

from atrous.cli.parser import main

if __name__ == "__main__":
    raise SystemExit(main())
