"""What can be seen of an app at work: figures, spans, ids of log records, the last events."""
