"""Damaged files, kills and mistakes: none is read silently, none ends in a traceback."""
