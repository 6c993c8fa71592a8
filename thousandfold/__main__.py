"""`python -m thousandfold`."""

from thousandfold import cli

if __name__ == "__main__":
    cli.main()
