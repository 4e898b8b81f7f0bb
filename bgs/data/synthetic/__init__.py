"""Rendered social animations with simulated participants, in the published layout: data that anyone may have."""

from bgs.data.synthetic.contact_sheet import contact_sheet
from bgs.data.synthetic.dataset import make_dataset
from bgs.data.synthetic.observers import Ceiling, Observers, load_observers

__all__ = ["Ceiling", "Observers", "contact_sheet", "load_observers", "make_dataset"]
