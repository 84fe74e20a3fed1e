"""`python -m gateway` is the command `pgsluice`."""

from .cli.main import main

if __name__ == "__main__":
    main(prog_name="pgsluice")
