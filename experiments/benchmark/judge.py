"""One function that judges weights, wherever they were trained."""

from typing import Any

from experiments.benchmark import weights
from experiments.benchmark.setting import make_setting
from experiments.machine.keys import root_key
from jaxvae.evaluation import estimate, make_score, map_dataset
from jaxvae.training.devices import make_map, make_mesh, replicate

BATCH_SIZE = 500


class Judge:
    """Gives a net's first weights, and the test bound of the mean of any others.

    The bound is the one that the net is trained on, the ELBO or that of K samples. All weights meet
    the same binary images and the same draws of q, so that their difference is that of the weights.
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
        """Write the weights that a training run of a seed starts from."""
        weights.save(path, weights.named(self._setting.initial_params(seed)))

    def bound(self, paths: list[str]) -> dict[str, float]:
        """Mean test bound of the mean of the weights in files, and its standard error, in nats."""
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
