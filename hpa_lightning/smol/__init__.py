"""``smol``: a benchmark of a real language model, real pictures and real harm, put together from registry packages."""
