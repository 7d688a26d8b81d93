"""Synthetic radiographs in MURA's layout, for tests, demonstrations and machines without data.

counts      which studies there are: MURA's proportions over bones and labels, and who the patients are
anatomy     what a skeleton is made of: tubes in three dimensions; the patient's traits
hand, arm, shoulder     the seven skeletons, and the field that an image of each covers
projection  tubes -> millimetres of bone and flesh along the beam, as numpy arrays
findings    fracture, hardware, lytic lesion, worn joint, and what only looks like one
image        thickness -> an image: exposure, noise, collimation, side markers
studies     one study: the same patient and finding in every view
writing     all studies, in worker processes, and MURA's tables
"""

from mura_models.phantom.generate import write_phantom

__all__ = ["write_phantom"]
