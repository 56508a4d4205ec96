"""Rewrites, the pipeline, folding, statistics and fits. Here: the registry of passes, a line each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from regraft.ir.errors.base import nearest

if TYPE_CHECKING:
    from regraft.passes.base import Pass

PASSES = {
    "share-kv": "regraft.passes.share_kv:ShareKV",
    "budget-heads": "regraft.passes.budget_heads:BudgetHeads",
    "merge-kv-heads": "regraft.passes.merge_kv_heads:MergeKVHeads",
    "window": "regraft.passes.window:Window",
    "compress-seq": "regraft.passes.compress_seq:CompressSeq",
    "gqa-to-latent": "regraft.passes.gqa_to_latent:GQAToLatent",
    "to-latent": "regraft.passes.to_latent:ToLatent",
    "to-cca": "regraft.passes.to_cca:ToCCA",
    "key-from-value": "regraft.passes.key_from_value:KeyFromValue",
    "last-tokens-only": "regraft.passes.last_tokens_only:LastTokensOnly",
    "absorb-mla": "regraft.passes.latent_forms:AbsorbMLA",
    "expand-mla": "regraft.passes.latent_forms:ExpandMLA",
    "fold-norms": "regraft.passes.fold_norms:FoldNorms",
    "fuse-projections": "regraft.passes.fuse_projections:FuseProjections",
    "split-projections": "regraft.passes.split_projections:SplitProjections",
    "fuse-convs": "regraft.passes.fuse_convs:FuseConvs",
    "permute-heads": "regraft.passes.permute_heads:PermuteHeads",
    "merge-duplicate-heads": "regraft.passes.merge_duplicate_heads:MergeDuplicateHeads",
    "drop-dead": "regraft.passes.drop_dead:DropDeadParts",
    "add-head-gates": "regraft.passes.add_head_gates:AddHeadGates",
    "add-short-convs": "regraft.passes.add_short_convs:AddShortConvs",
    "add-hyper-connections": "regraft.passes.add_hyper_connections:AddHyperConnections",
    "add-per-layer-embeddings": "regraft.passes.add_per_layer_embeddings:AddPerLayerEmbeddings",
    "dce": "regraft.passes.cleanup:DropDead",
    "cse": "regraft.passes.cleanup:MergeEqual",
}


def pass_class(name: str, where: str = "") -> type[Pass]:
    """Return the pass called ``name``.

    Raises:
        UnknownPassError: There is none; the nearest names are offered.
    """
    from regraft.ir.errors.recipe import UnknownPassError

    if name not in PASSES:
        raise UnknownPassError(name=name, near=nearest(name, list(PASSES)), where=where)
    module, _, cls = PASSES[name].partition(":")
    return cast("type[Pass]", getattr(importlib.import_module(module), cls))


def all_passes() -> list[type[Pass]]:
    """Return every pass, in the order in which `regraft passes` lists them."""
    return [pass_class(name) for name in PASSES]
