"""How the functions of :mod:`hpa_lightning.functional` compute: fast, accurate and in little memory."""
