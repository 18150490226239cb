"""Data sets, one file each: the file name is the name in `data: {name: ...}`. See
`tune_mm.data.base`.
"""
