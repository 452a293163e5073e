"""From a preference file to token ids: records, pairs, templates, tokenisation.

records = read_records("data.jsonl", objectives=("helpfulness", "correctness"))
train, evaluation = split_records(records, eval_fraction=0.1, seed=0)
pairs, report = build_pairs(train, objectives=("helpfulness", "correctness"))
samples, report = tokenize_pairs(pairs, tokenizer, objectives=("helpfulness", "correctness"), scales=scales_of(train))
"""

from amopo.data.cache import cache_folder, cached_samples
from amopo.data.chat import ChatEncoder
from amopo.data.overall import add_overall, overall_weights, with_overall
from amopo.data.pairs import ORIENTATIONS, PairMaker, PairReport, build_pairs
from amopo.data.readers import ReadReport, iter_records, read_records, scan_scores
from amopo.data.scales import KNOWN_SCALES, parse_scales, resolve_scales, scales_of
from amopo.data.schema import DataError, Message, Pair, PreferenceRecord, Response, Scale
from amopo.data.split import split_records
from amopo.data.templates import Template, get_template, list_templates, load_template, register_template
from amopo.data.tokenize import PairTokenizer, TokenizationReport, render_prompts, tokenize_pairs

__all__ = [
    "KNOWN_SCALES",
    "ORIENTATIONS",
    "ChatEncoder",
    "DataError",
    "Message",
    "Pair",
    "PairMaker",
    "PairReport",
    "PairTokenizer",
    "PreferenceRecord",
    "ReadReport",
    "Response",
    "Scale",
    "Template",
    "TokenizationReport",
    "add_overall",
    "build_pairs",
    "cache_folder",
    "cached_samples",
    "get_template",
    "iter_records",
    "list_templates",
    "load_template",
    "overall_weights",
    "parse_scales",
    "read_records",
    "register_template",
    "render_prompts",
    "resolve_scales",
    "scales_of",
    "scan_scores",
    "split_records",
    "tokenize_pairs",
    "with_overall",
]
