"""Instant variants without jax, for the tests of the benchmark's workers."""

import itertools
import os
import sys
import time

SEGMENT = {"steps": 4, "images": 40, "seconds": 0.5, "peak_bytes": 10**8, "rows_per_second": 800.0,
           "sum": 7}  # fmt: skip


class Trivial:
    """Variant that answers at once, with a rate that rises from round to round."""

    def __init__(self, rate=100.0):
        print("noise on standard output")
        os.system("echo noise of a child")
        self._rates = itertools.count(rate, 1.0)
        self.about = {"setting": "none", "compile_seconds": 1.5}

    def segment(self):
        return SEGMENT | {"images_per_second": next(self._rates)}

    def values(self, num_images):
        return [float(i % 3) for i in range(num_images)]

    def train(self, initial, snapshots, seed):
        return {"seconds": 1.0}

    def write_initial(self, path, seed):
        return None

    def bound(self, paths):
        return {"value": -100.0, "standard_error": 0.5}

    def reject(self):
        raise ValueError("a reason\nin two lines")

    def sleep(self):
        time.sleep(600)

    def die(self):
        print("first line", file=sys.stderr)
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)


class Judge(Trivial):
    """Judge that gives all weights the same bound."""

    def __init__(self, **net_and_data):
        super().__init__()


def without_torch(**arguments):
    """Prepare the PyTorch variant as on a machine without PyTorch."""
    sys.modules["torch"] = None
    from experiments.benchmark.pytorch.training import prepare

    return prepare(**arguments)


class OneOfTwo(Trivial):
    """Variant of two processes: the second one fails, and the first one waits forever for it."""

    def __init__(self, process_id):
        super().__init__()
        self._process_id = process_id
        self.about["process_id"] = process_id

    def segment(self):
        if self._process_id == 1:
            raise RuntimeError("the second fails")
        sys.stdin.read()
