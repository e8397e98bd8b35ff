def summary(r): return ""
