"""`amopo doctor`: do packed rows give this model, here, what separate forwards give?

Packs two samples of random tokens, compares log-probs and gradients with separate forwards on the asked device and in
the asked precision, and says yes, or where it differs (exit status 1). A model that cannot run packed rows is refused
by the name of the layer or setting that is in the way.
"""

from __future__ import annotations

import torch

from amopo.cli.console import Console, quiet_libraries
from amopo.cli.errors import CommandFailed, UsageError
from amopo.cli.models import DTYPES, load, need
from amopo.cli.options import Option, Settings
from amopo.packing.sample import TokenizedSample
from amopo.packing.trie import SHARING

DESCRIPTION = "Compares packed rows with separate forwards, on a model, a device and a precision."


def options() -> list[Option]:
    need("transformers", "hf")
    return [
        Option("model", str, "folder or Hub name", metavar="M", required=True),
        Option("sharing", str, f"what sequences share: {', '.join(SHARING)}", default="tree"),
        Option("objectives", int, "K, prompts per sample", default=3),
        Option(
            "dtype",
            str | None,
            f"of the loaded weights: {', '.join(DTYPES)} (default: float32; on CUDA bfloat16 as well, which other "
            "kernels compute)",
            default=None,
        ),
        Option("device", str | None, "cpu, cuda, cuda:1, ... (default: CUDA where it is)", default=None),
        Option("length", int, "longest prompt and response in tokens", default=24),
    ]


def probe(vocab: int, objectives: int, length: int) -> list[TokenizedSample]:
    """Two samples whose prompts begin and end alike, with responses of unequal length that begin alike."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(vocab, (max(1, count),), generator=generator).tolist()

    samples = []
    for number in range(2):
        head, tail, begin = tokens(length // 2), tokens(length // 4), tokens(length // 4)
        prompts = [head + tokens(1 + k % (length // 4 + 1)) + tail for k in range(objectives)]
        other = (begin[-1] + 1) % vocab
        samples.append(
            TokenizedSample(prompts, begin + tokens(length - length // 4), [*begin[:-1], other, *tokens(1)], number)
        )
    return samples


def run(settings: Settings) -> None:
    console = Console(quiet=settings.quiet)
    if settings.sharing not in SHARING:
        raise UsageError(f"--sharing: {settings.sharing!r} is not known; known: {', '.join(SHARING)}")
    if settings.objectives < 1 or settings.length < 4:
        raise UsageError("--objectives must be at least 1 and --length at least 4")
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device: {device} cannot be used: {str(error).splitlines()[0]}") from error
    quiet_libraries(settings)
    from amopo.trainer.self_check import compare_with_separate_forwards

    dtypes = [settings.dtype] if settings.dtype else ["float32", "bfloat16"][: 2 if device.startswith("cuda") else 1]
    for asked in dtypes:
        with console.busy("loading the model"):
            model, _ = load(settings.model, dtype=asked)
            model = model.to(device)
        vocab = model.get_input_embeddings().weight.shape[0]
        samples = probe(vocab, settings.objectives, settings.length)
        with console.busy("comparing"):
            found = compare_with_separate_forwards(model, samples, sharing=settings.sharing)
        dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        console.say(f"{settings.model}: {type(model).__name__}, {dtype}, {device}, sharing={settings.sharing}")
        console.say(str(found))
        if not found.is_exact:
            raise CommandFailed(
                f"no: packed rows of {type(model).__name__} are not what separate forwards give on {device}, {dtype}: "
                f"{found}"
            )
        del model
    print("yes: packed rows are exact for this model here")
