"""`python -m gpta_local`: the command line, for launchers that start a module."""

from gpta_local.cli.main import main

if __name__ == "__main__":
    main()
