"""`python -m amopo` is the `amopo` command."""

from amopo.cli.main import run_process

if __name__ == "__main__":
    run_process()
