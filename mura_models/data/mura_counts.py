"""The published counts of MURA v1.1.

Pranav Rajpurkar et al., "MURA: Large Dataset for Abnormality Detection in Musculoskeletal Radiographs", 2017,
https://arxiv.org/abs/1712.06957; images per bone and label from public repositories that print the counts of v1.1.
"""

from typing import Literal

Split = Literal["train", "valid"]

# Studies and images by split and bone, (negative, positive) each: 13,457 + 1,199 studies, 36,808 + 3,197 images.
MURA_COUNTS: dict[Split, dict[str, tuple[tuple[int, int], tuple[int, int]]]] = {
    "train": {
        "XR_ELBOW": ((1094, 660), (2925, 2006)),
        "XR_FINGER": ((1280, 655), (3138, 1968)),
        "XR_FOREARM": ((590, 287), (1164, 661)),
        "XR_HAND": ((1497, 521), (4059, 1484)),
        "XR_HUMERUS": ((321, 271), (673, 599)),
        "XR_SHOULDER": ((1364, 1457), (4211, 4168)),
        "XR_WRIST": ((2134, 1326), (5765, 3987)),
    },
    "valid": {
        "XR_ELBOW": ((92, 66), (235, 230)),
        "XR_FINGER": ((92, 83), (214, 247)),
        "XR_FOREARM": ((69, 64), (150, 151)),
        "XR_HAND": ((101, 66), (271, 189)),
        "XR_HUMERUS": ((68, 67), (148, 140)),
        "XR_SHOULDER": ((99, 95), (285, 278)),
        "XR_WRIST": ((140, 97), (364, 295)),
    },
}
MURA_PATIENTS: dict[Split, int] = {"train": 11_184, "valid": 783}
