"""Train a VAE, evaluate it, and write a report.

python -m experiments.train
python -m experiments.train --dataset=mnist --model=conv --run=runs/conv
"""

import contextlib
import sys
import time

from experiments.flags import command
from experiments.flags.config import TrainConfig
from experiments.flags.continuing import check_schedule, ended_schedule, flags_of_run
from experiments.flags.packages import require_packages
from experiments.machine.processes import agree_on_flags, as_peer
from experiments.record.progress import announced


def train(config: TrainConfig) -> int:
    """Start or continue the training run that the flags describe; return the exit code."""
    with as_peer(config.processes):
        return _train(config)


def _train(config: TrainConfig) -> int:
    started = time.perf_counter()
    with command.as_user_errors(config.model):
        config.check()
        require_packages("matplotlib", "PIL", *(["tensorboardX"] if config.tensorboard else []))
        with announced("Starting JAX", quiet=config.quiet or config.processes.may_follow):
            from experiments.machine import accelerators, compilation_cache

            compilation_cache.use(config.compilation_cache)
            devices = accelerators.start(
                config.accelerator,
                config.num_devices,
                config.processes,
                deterministic=config.deterministic_reduction,
            )
            agree_on_flags(config)
            from experiments.run.finish import finish
            from experiments.run.loop import training
            from experiments.run.saving import advice
            from jaxvae.checkpoints.hosts import is_first

        opened = contextlib.ExitStack()
        loop = opened.enter_context(training(config, devices, started))
    with opened:
        built = loop.built
        with command.as_user_errors():
            check_schedule(built.config, loop.step)
        warning = ended_schedule(built.config, loop.step, built.num_steps)
        if warning is not None and is_first():
            print(warning, file=sys.stderr)
        code = loop.train()
        if code == 0:
            try:
                finish(loop)
            except OSError as error:
                print(
                    f"error: the trained model is saved, its results are not: {error}. "
                    + advice(error, "rerun the same command to write them."),
                    file=sys.stderr,
                )
                code = 1
    return code


if __name__ == "__main__":
    command.main(TrainConfig, train, flags_of_run)
