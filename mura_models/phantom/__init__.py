"""Digital phantom: synthetic radiographs in MURA's layout, for tests, demonstrations and machines without data.

A phantom is, as in medical imaging, a made object that stands in for a patient.

counts      which studies there are, in MURA's proportions of bones and labels, and their patients
anatomy     skeletons as tubes in three dimensions; the traits of a patient
hand, arm, shoulder     the seven skeletons, and the field that an image of each covers
projection  tubes -> millimeters of bone and flesh along the beam, as numpy arrays
findings    fracture, hardware, lytic lesion, worn joint
radiograph  thickness -> an image: exposure, noise, collimation, side markers
study       one study: the same patient and finding in every projection
generate    all studies, in worker processes, and MURA's tables
"""

from mura_models.phantom.generate import write_phantom

__all__ = ["write_phantom"]
