"""People rate the answers of several runs, blind: the form, and what the filled forms say."""

from hpa_lightning.rating.form import export_form
from hpa_lightning.rating.outcome import Outcome, rate_outcome

__all__ = ["Outcome", "export_form", "rate_outcome"]
