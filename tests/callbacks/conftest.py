"""A fixture that several files of tests share."""

from support.gated_fits import ungated  # noqa: F401
