"""Where `bankrun` begins: an interruption while everything is being imported is as quiet as one later."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from bankrun.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
