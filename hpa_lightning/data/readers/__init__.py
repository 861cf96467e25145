"""Readers of the record files that users bring: LLaVA / CoIN / MCITlib and their test files, chat, ShareGPT, Alpaca."""

from hpa_lightning.data.readers.reader import FORMATS, as_records, examine_records, open_records, read_records
from hpa_lightning.data.readers.row_fields import DataWarning

__all__ = ["FORMATS", "DataWarning", "as_records", "examine_records", "open_records", "read_records"]
