"""Judge of trained weights: one test bound, applied to the weights of every variant."""

from typing import Any

from experiments.benchmark import weights
from experiments.benchmark.setting import make_setting
from experiments.machine.keys import root_key
from jaxvae.evaluation import estimate, make_score, map_dataset
from jaxvae.training.devices import make_map, make_mesh, replicate

BATCH_SIZE = 500


class Judge:
    """Provide a net's initial weights, and compute the test bound of trained weights.

    The bound is the one that the net is trained on, the ELBO or the K-sample bound. All weights are
    evaluated on the same binary images with the same draws of q, so that only the weights differ.
    """

    def __init__(self, net: str, **where: Any) -> None:
        self._setting = make_setting(net, **where)
        self._mesh = make_mesh(self._setting.devices[:1])
        num_samples = self._setting.net.num_samples
        score = make_score(
            self._setting.vae,
            prepare=self._setting.preprocessing.prepare,
            num_samples=num_samples if num_samples > 1 else 0,
        )
        self._score = make_map(score, self._mesh)
        self._like = self._setting.initial_params()
        self.about: dict[str, Any] = {}

    def write_initial(self, path: str, seed: int = 0) -> None:
        """Write the initial weights of a training run with this seed."""
        weights.save(path, weights.named(self._setting.initial_params(seed)))

    def bound(self, paths: list[str]) -> dict[str, float]:
        """Average the weights of some files; return their mean test bound and its standard error.

        Both are in nats.
        """
        params = weights.as_tree(weights.mean([weights.load(path) for path in paths]), self._like)
        scores = map_dataset(
            self._score,
            replicate(params, self._mesh),
            replicate(root_key(0), self._mesh),
            self._setting.dataset.test,
            mesh=self._mesh,
            batch_size=BATCH_SIZE,
        )
        many = scores.log_likelihood
        return estimate(scores.elbo if many is None else many)._asdict()
