"""Everything about accelerators: what is there, what is free, which run holds which."""
