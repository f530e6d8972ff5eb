"""Tables of papers, one file per paper; `paring table NAME` makes them."""

from paring.lab.tables.figures2018 import FIGURES as _LOUIZOS_FIGURES
from paring.lab.tables.figures2018 import Figures
from paring.lab.tables.louizos2018 import MNIST, RELAXATIONS
from paring.lab.tables.table import Entry, Table, run_table

TABLES: dict[str, Table] = {table.name: table for table in (MNIST, RELAXATIONS)}
FIGURES: dict[str, Figures] = {_LOUIZOS_FIGURES.name: _LOUIZOS_FIGURES}

__all__ = ["FIGURES", "TABLES", "Entry", "Figures", "Table", "run_table"]
