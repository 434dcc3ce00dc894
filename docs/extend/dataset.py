"""A data set of one's own: chips in .npy files that are read as they are needed."""

import numpy as np


class Folder:
    """`image.npy` [N, H, W, C] and `elevation.npy` [N, h, w] of a folder, left on the disk."""

    def __init__(self, folder):
        self._files = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("image", "elevation")
        }

    def __len__(self):
        return len(self._files["image"])

    def __getitem__(self, index):
        """One chip, by feature."""
        return {name: np.asarray(array[index]) for name, array in self._files.items()}

    def nbytes(self, *names):
        """What these features would take in memory: above data.resident_gib they are streamed."""
        return sum(self._files[name].nbytes for name in names)

    def arrays(self, *names):
        """These features in memory."""
        return {name: np.asarray(self._files[name]) for name in names}
