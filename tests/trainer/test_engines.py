"""Which parallelism a trainer is refused with, whatever of it its transformers has."""

from types import SimpleNamespace

import pytest

from amopo.trainer.engines import check_parallelism

ARGS = SimpleNamespace(deepspeed=None, fsdp=None, world_size=1)


def trainer(**sizes):
    methods = {f"get_{name}_size": (lambda size=size: size) for name, size in sizes.items()}
    return SimpleNamespace(args=ARGS, accelerator=None, is_deepspeed_enabled=False, is_fsdp_enabled=False, **methods)


@pytest.mark.parametrize(
    "sizes", [{"tp": 1, "cp": 1, "sp": 1}, {"tp": 1}, {}], ids=["transformers 5", "one way", "transformers 4"]
)
def test_a_trainer_that_splits_nothing_is_taken(sizes):
    check_parallelism(trainer(**sizes))


@pytest.mark.parametrize("name, word", [("tp", "tensor"), ("cp", "context"), ("sp", "sequence")])
def test_each_way_is_refused_by_name(name, word):
    with pytest.raises(ValueError, match=rf"does not support {word} parallelism \(size 2\)"):
        check_parallelism(trainer(**{name: 2}))
