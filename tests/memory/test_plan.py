"""What a plan says of settings that can be checked by hand, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("torch")

from amopo.memory.advice import changes, largest_samples, smallest_cluster
from amopo.memory.known_shapes import BUILT_IN
from amopo.memory.methods import METHODS, plan_method
from amopo.memory.plan import make_plan
from amopo.memory.settings import RunSettings, SampleShape
from amopo.memory.workload import fill, padded, row_of
from amopo.packing.sdpa import kept_mask

QWEN = BUILT_IN["Qwen2.5-32B"]
SAMPLE = SampleShape()
GIB = 1 << 30


@pytest.mark.parametrize("sharing", ["none", "pair", "tree"])
@pytest.mark.parametrize("template", [0, 3])
def test_a_row_has_the_sizes_that_packing_gives_it(sharing, template):
    if sharing == "tree" and template == 0:
        pytest.skip("a tree of one prompt under all objectives has no K prompts")
    from amopo.memory.configs import samples_of
    from amopo.packing import pack

    sample = SampleShape(objectives=3, prompt=7, template=template, chosen=5, rejected=4, samples=2, sharing=sharing)
    batch = pack(samples_of(sample), sharing=sharing)
    row, paths = row_of(sample), batch.layout.paths
    assert row.tokens == batch.input_ids.shape[1] and row.rows == batch.layout.row_index.shape[0]
    assert row.mask == kept_mask(paths.lengths)
    assert (row.mask > 0) == (sharing != "none")
    assert row.paths == len(paths.lengths) and row.keys == sum(keys for _, keys in paths.lengths)


def test_states_of_one_gpu_are_sixteen_bytes_a_parameter_in_mixed_precision():
    plan = make_plan(QWEN, SAMPLE, RunSettings())
    step = plan.phases["step"]
    assert step["parameters"] + step["gradients"] + step["optimizer"] == 16 * QWEN.parameters


def test_thirty_two_ranks_hold_a_thirty_second_of_the_states():
    plan = make_plan(QWEN, SAMPLE, RunSettings(engine="fsdp2", gpus=32))
    step = plan.phases["step"]
    assert step["parameters"] + step["gradients"] + step["optimizer"] == 16 * QWEN.parameters // 32


def test_zero3_keeps_sixteen_bytes_a_parameter_in_other_shares():
    step = make_plan(QWEN, SAMPLE, RunSettings(engine="zero3", gpus=32)).phases["step"]
    share = QWEN.parameters // 32
    assert (step["parameters"], step["gradients"], step["optimizer"]) == (2 * share, 2 * share, 12 * share)


def test_lora_trains_adapters_over_a_half_precision_base():
    plan = make_plan(QWEN, SAMPLE, RunSettings(lora=8))
    trained = QWEN.layers * QWEN.lora_parameters(8)
    step = plan.phases["step"]
    assert step["gradients"] == 4 * trained and step["optimizer"] == 8 * trained
    assert step["parameters"] == 2 * QWEN.parameters + 4 * trained


def test_adamw8bit_keeps_one_byte_a_moment_and_the_embedding_in_fp32():
    plan = make_plan(QWEN, SAMPLE, RunSettings(optimizer="adamw8bit"))
    table = QWEN.embedding_parameters
    rest = QWEN.parameters - table
    assert plan.phases["step"]["optimizer"] == 2 * rest + 8 * -(-rest // 256) + 8 * table


def test_the_head_is_what_workspace_bytes_says():
    from amopo import workspace_bytes
    from amopo.memory.head import head_memory

    bf16 = __import__("torch").bfloat16
    rows, hidden, vocab = row_of(SAMPLE).rows, QWEN.hidden, QWEN.vocab
    inputs = 2 * rows * hidden  # the rows that the head reads are not part of what it promises
    # a frozen head's forward is the largest point of its phase
    frozen = make_plan(QWEN, SAMPLE, RunSettings(precision="bf16", checkpointing=True, lora=8)).phases["head"]
    assert frozen["head"] == workspace_bytes((rows, hidden, vocab), bf16, frozen=True, device="cuda") + inputs
    # of a trained one the forward takes more, and the backward stands beside the weight's gradient
    trained = head_memory(rows, hidden, vocab, compute=2, stored=2, frozen=False)
    assert trained.forward == workspace_bytes((rows, hidden, vocab), bf16, device="cuda") + inputs
    there = make_plan(QWEN, SAMPLE, RunSettings(precision="bf16", checkpointing=True)).phases["head"]
    assert there["head"] == trained.backward > trained.kept > 2 * inputs
    assert there["gradients"] == 2 * QWEN.embedding_parameters


def test_offloading_moves_states_to_the_host():
    here = make_plan(QWEN, SAMPLE, RunSettings(engine="zero3", gpus=8))
    away = make_plan(QWEN, SAMPLE, RunSettings(engine="zero3", gpus=8, offload="all"))
    assert here.host == 0 and away.phases["step"]["optimizer"] == 0 == away.phases["step"]["parameters"]
    assert away.host == (2 + 12 + 4 + 2) * QWEN.parameters // 8


@pytest.mark.parametrize("precision, size", [("bf16", 2), ("mixed", 4)])
def test_fsdp2_offloads_weight_gradient_and_two_moments_of_one_size(precision, size):
    settings = RunSettings(engine="fsdp2", gpus=8, offload="all", precision=precision)
    assert make_plan(QWEN, SAMPLE, settings).host == 4 * size * QWEN.parameters // 8


def test_zero3_gathers_by_its_limits_and_not_the_model():
    """A layer of 0.49e9 numbers is used again before 1e9 have gone by, a layer further off is not."""
    from amopo.memory.zero3 import gathered, persistent

    layer, table = QWEN.layer_parameters, QWEN.embedding_parameters
    limits = {"max_live": 10**9, "max_reuse": 10**9}
    found = gathered(QWEN, lora=None, checkpointing=True, **limits)
    assert 2 * layer <= found["layer 40 mlp"] <= 2 * (10**9 + layer)
    assert found["layer 0 mlp"] >= 2 * table  # the embedding is fetched ahead
    assert found["head backward"] >= 2 * table
    # norms and biases, of at most 10 H numbers
    small = QWEN.layers * (2 * QWEN.hidden + QWEN.query_width + 2 * QWEN.key_width) + QWEN.hidden
    assert persistent(QWEN) == small
    # without a limit the whole model stands, once, from the forward to the backward
    everything = gathered(QWEN, lora=None, checkpointing=False, max_live=10**12, max_reuse=10**12)
    assert everything["head forward"] == 2 * QWEN.parameters


def test_sharing_and_the_released_code_stand_in_order():
    sample = dataclasses.replace(SAMPLE, samples=2)
    settings = RunSettings(engine="fsdp2", gpus=32, checkpointing=True)
    peaks = {name: plan_method(name, QWEN, sample, settings).peak for name in METHODS}
    assert peaks["released"] > peaks["plain bf16"] > peaks["amopo none"] > peaks["amopo pair"] > peaks["amopo tree"]
    rows, length = padded(sample)
    logits = rows * length * QWEN.vocab
    assert plan_method("released", QWEN, sample, settings).phases["head"]["head"] == 16 * logits
    with pytest.raises(ValueError, match="method 'amopo most' is not known; known: released"):
        plan_method("amopo most", QWEN, sample, settings)


def test_the_largest_budget_fits_and_one_sample_more_does_not():
    settings = RunSettings(engine="fsdp2", gpus=32, checkpointing=True)
    limit = 40 * GIB
    most = largest_samples(QWEN, SAMPLE, settings, limit=limit)
    assert make_plan(QWEN, dataclasses.replace(SAMPLE, samples=most), settings).peak <= limit
    assert make_plan(QWEN, dataclasses.replace(SAMPLE, samples=most + 1), settings).peak > limit
    assert largest_samples(QWEN, SAMPLE, settings, limit=GIB) == 0


def test_the_smallest_cluster_fits_and_half_of_it_does_not():
    settings = RunSettings(engine="fsdp2", gpus=8, checkpointing=True)
    found = smallest_cluster(QWEN, SAMPLE, settings, limit=40 * GIB)
    assert found.peak <= 40 * GIB
    smaller = dataclasses.replace(settings, gpus=found.settings.gpus - settings.gpus_per_node)
    assert make_plan(QWEN, SAMPLE, smaller).peak > 40 * GIB
    assert smallest_cluster(QWEN, dataclasses.replace(SAMPLE, samples=4000), settings, limit=40 * GIB) is None


@pytest.mark.parametrize("per_node, limit", [(6, 80), (4, 20), (8, 70), (8, 60), (8, 600), (8, 200)])
def test_clusters_are_part_of_a_node_or_whole_nodes(per_node, limit):
    settings = RunSettings(engine="fsdp2", gpus=per_node, gpus_per_node=per_node, checkpointing=True)
    found = smallest_cluster(QWEN, SAMPLE, settings, limit=limit * GIB)
    gpus = found.settings.gpus
    assert found.peak <= limit * GIB and (gpus <= per_node or gpus % per_node == 0)
    if gpus > 1:
        fewer = gpus - 1 if gpus <= per_node else gpus - per_node
        smaller = dataclasses.replace(settings, gpus=fewer, engine="fsdp2" if fewer > 1 else "single")
        assert make_plan(QWEN, SAMPLE, smaller).peak > limit * GIB
    else:
        assert found.settings.engine == "single"


def test_an_optimizer_for_one_gpu_finds_no_cluster_and_is_not_advised_where_it_cannot_run():
    settings = RunSettings(optimizer="adamw8bit", checkpointing=True)
    assert smallest_cluster(QWEN, SAMPLE, settings, limit=80 * GIB) is None
    for engine in ("fsdp2", "zero3"):
        labels = {change.label for change in changes(QWEN, SAMPLE, RunSettings(engine=engine, gpus=8))}
        assert labels and not any("8bit" in label for label in labels)
    assert "--optimizer adamw8bit" in {change.label for change in changes(QWEN, SAMPLE, RunSettings())}


def test_accumulating_leaves_whole_gradients_on_one_gpu_and_a_share_of_them_under_fsdp2():
    """The second micro-batch's forward begins with the gradients of the first."""
    for engine, gpus, held in (("single", 1, 4 * QWEN.parameters), ("fsdp2", 32, 4 * QWEN.parameters // 32)):
        settings = RunSettings(engine=engine, gpus=gpus, checkpointing=True)
        once = make_plan(QWEN, SAMPLE, settings)
        twice = make_plan(QWEN, SAMPLE, dataclasses.replace(settings, accumulation=2))
        assert once.phases["forward"]["gradients"] == 0 and twice.phases["forward"]["gradients"] == held
        assert twice.total("forward") - once.total("forward") == held
        assert twice.total("step") == once.total("step")
        assert make_plan(QWEN, SAMPLE, dataclasses.replace(settings, accumulation=7)).phases == twice.phases
    zero = RunSettings(engine="zero3", gpus=32)
    several = dataclasses.replace(zero, accumulation=2)
    assert make_plan(QWEN, SAMPLE, zero).phases == make_plan(QWEN, SAMPLE, several).phases
    found = {change.label: change for change in changes(QWEN, SAMPLE, RunSettings(accumulation=2))}
    assert found["--accumulate 1"].peak == make_plan(QWEN, SAMPLE, RunSettings()).peak


def test_ddp_finds_no_cluster_where_the_states_do_not_fit():
    settings = RunSettings(engine="ddp", gpus=8, checkpointing=True)
    assert smallest_cluster(QWEN, SAMPLE, settings, limit=80 * GIB) is None


def test_one_gpu_may_become_a_node():
    found = {change.label: change for change in changes(QWEN, SAMPLE, RunSettings(checkpointing=True))}
    sharded = RunSettings(engine="fsdp2", gpus=8, checkpointing=True)
    assert found["--gpus 8 --engine fsdp2"].peak == make_plan(QWEN, SAMPLE, sharded).peak
    found = changes(QWEN, SAMPLE, RunSettings(engine="fsdp2", gpus=6, gpus_per_node=8))
    assert "--gpus 16" in {change.label for change in found}  # 12 would be one and a half nodes


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_row_of_a_method_is_the_last_that_its_plan_fits(method):
    settings = RunSettings(engine="fsdp2", gpus=32, checkpointing=True)
    most = largest_samples(QWEN, SAMPLE, settings, limit=60 * GIB, method=method)
    peaks = [
        plan_method(method, QWEN, dataclasses.replace(SAMPLE, samples=samples), settings).peak
        for samples in (most, most + 1)
    ]
    assert peaks[0] <= 60 * GIB < peaks[1]


def test_changes_are_what_their_plans_say():
    settings = RunSettings(engine="ddp", gpus=8)
    found = changes(QWEN, SAMPLE, settings, limit=80 * GIB)
    assert found == sorted(found, key=lambda change: change.peak) and all(change.freed > 0 for change in found)
    by_label = {change.label: change.peak for change in found}
    assert by_label["--engine fsdp2"] == make_plan(QWEN, SAMPLE, RunSettings(engine="fsdp2", gpus=8)).peak
    assert (
        by_label["--checkpointing"]
        == make_plan(QWEN, SAMPLE, RunSettings(engine="ddp", gpus=8, checkpointing=True)).peak
    )


@pytest.mark.parametrize(
    "given, message",
    [
        ({"engine": "zero9"}, "known: single, ddp, fsdp2, zero3"),
        ({"gpus": 2}, "engine 'single' runs on one GPU, not on 2"),
        ({"engine": "fsdp2", "gpus": 12}, "12 GPUs are not a whole number of nodes of 8"),
        ({"engine": "fsdp2", "gpus": -8}, "gpus must be a whole number of at least 1"),
        ({"engine": "ddp", "gpus": 8, "offload": "all"}, "'ddp' does not offload"),
        ({"engine": "fsdp2", "gpus": 8, "offload": "optimizer"}, "--offload all"),
        ({"engine": "zero3", "gpus": 8, "offload": "all", "optimizer": "adamw8bit"}, "adamw8bit runs on the GPU"),
        ({"engine": "fsdp2", "gpus": 8, "optimizer": "adamw8bit"}, "adamw8bit does not run under fsdp2: .*DTensors"),
        ({"engine": "zero3", "gpus": 8, "optimizer": "adamw8bit"}, "adamw8bit is not planned with zero3"),
        ({"accumulation": 0}, "accumulation must be a whole number of at least 1"),
        ({"engine": "zero3", "gpus": 8, "precision": "bf16"}, "--precision mixed"),
        ({"lora": 0}, "lora must be a whole number of at least 1"),
        ({"precision": "fp8"}, "known: mixed, bf16, fp32"),
    ],
)
def test_impossible_settings_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        RunSettings(**given)


@pytest.mark.parametrize("given", [{"objectives": 0}, {"prompt": -1}, {"template": -1}, {"sharing": "most"}])
def test_impossible_samples_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        SampleShape(**given)


def test_a_budget_that_holds_no_sample_names_the_one_that_does():
    one = row_of(SAMPLE).tokens
    with pytest.raises(ValueError, match=f"give --tokens {one} or more"):
        fill(SAMPLE, one - 1)
    assert fill(SAMPLE, one).samples == 1 and fill(SAMPLE, 3 * one - 1).samples == 2
    with pytest.raises(ValueError, match="tokens must be"):
        fill(SAMPLE, -5)


@pytest.mark.parametrize("observed, tables", [(False, 2), (True, 3)])
def test_the_gradients_of_a_tied_weight_meet_in_the_backward(observed, tables):
    """The head's and the embedding's stand side by side; what a dispatch mode sees is added into a third tensor."""
    tied = BUILT_IN["Llama-3.2-1B"]
    plan = make_plan(tied, SAMPLE, RunSettings(checkpointing=True), observed=observed)
    rest = tied.parameters - tied.embedding_parameters
    assert plan.phases["backward"]["gradients"] == 4 * (rest + tables * tied.embedding_parameters)
