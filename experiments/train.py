"""Train a VAE, evaluate it, and write a report.

python -m experiments.train
python -m experiments.train --dataset=mnist --model=conv --run=runs/conv
"""

from experiments import command
from experiments.config import TrainConfig


def train(config: TrainConfig) -> int:
    """Run, or continue, the training that the flags describe; returns the exit code."""
    with command.refusing():
        config.check()
        from experiments import accelerators

        devices = accelerators.start(config.accelerator, config.num_devices)
        from experiments.final_report import finish
        from experiments.training_run import TrainingRun

        run = TrainingRun(config, devices)
    with run:
        code = run.to_the_end()
        if code == 0:
            finish(run)
    return code


if __name__ == "__main__":
    command.main(TrainConfig, train)
