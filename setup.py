"""The package list, with the YAML files that live at the top level of the repository.

A checkout and an editable install read configs/ and search_spaces/ where they are; a wheel carries the same files as
tune_mm/_configs and tune_mm/_search_spaces. `tune_mm.config.find` looks in both places.
"""

from setuptools import find_packages, setup

SHIPPED = {"tune_mm._configs": "configs", "tune_mm._search_spaces": "search_spaces"}

setup(
    packages=[*find_packages(include=["tune_mm", "tune_mm.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "tune_mm": ["py.typed"],
        "tune_mm.scaffold": ["templates/*/*.txt"],
        "tune_mm.reports.pages": ["templates/*"],
        **{name: ["*.yaml", "*/*.yaml"] for name in SHIPPED},
    },
)
