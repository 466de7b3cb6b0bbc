"""The report: one self-contained HTML page, made from durable records only. Pure: values in, text out."""
