"""The demo chat that ``socketspec demo`` and ``make run`` start: `app.py` is an example to copy from."""
