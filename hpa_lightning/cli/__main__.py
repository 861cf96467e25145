"""`python -m hpa_lightning.cli`: the same as `hpa-lightning`."""

from hpa_lightning.cli.app import main

if __name__ == "__main__":
    main()
