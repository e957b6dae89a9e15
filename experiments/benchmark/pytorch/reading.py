"""Variant that reads a folder of pictures by a Dataset and a DataLoader of two workers."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from experiments.benchmark.picture_readers import BATCH, measured

WORKERS = 2


class Folder(Dataset):
    """Pictures as torchvision's ImageFolder reads them, as uint8 tensors [H, W, C].

    Args:
        folder: folder of the pictures.
    """

    def __init__(self, folder: str) -> None:
        self._paths = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with self._paths[index].open("rb") as file:
            return torch.from_numpy(np.array(Image.open(file).convert("RGB")))


class Loader:
    """The loader, started anew for every segment, as for every epoch.

    Args:
        folder: folder of the pictures.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.about = {"setting": f"PyTorch {torch.__version__}"}

    def segment(self) -> dict[str, Any]:
        """Read all pictures once."""
        started = time.perf_counter()
        loader = DataLoader(Folder(self._folder), BATCH, num_workers=WORKERS)
        return measured(started, (batch.numpy() for batch in loader))
