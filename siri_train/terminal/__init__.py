"""Text for a terminal: widths, line breaks, tables, encodings."""
