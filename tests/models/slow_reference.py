"""A slow second implementation of the method, to judge the fast one by.

The model is computed block by block in plain torch, one head at a time. What `circuits` never
holds all at once is written out here: every destination (`a0.h1<q>`, `m0`, `logits`, ...) has an
input tensor of its own, the sum of what its sources wrote plus the constants (`b_O`). So

- an edge's score is what its source writes, clean minus ablated, times the gradient that autograd
  finds at that very tensor;
- a circuit is the same loop, each source outside it replaced in the sum by what it writes ablated.

Where a norm stands behind a layer's heads, their sum before that norm is a tensor of its own for
every destination too (`m1@0`: what m1 has of layer 0), and autograd finds the gradient there.

Only norms, MLPs, rotations and the unembedding are called on the model's own modules: none of them
knows of an edge. Nothing is shared with the code under test but the names of nodes and the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    pass

from circuits.gate.gate import is_gated
from circuits.metrics import METRICS
from circuits.models.backend import Model
from circuits.prompts import Prompts

Stream = Float[Tensor, "batch pos d_model"]
Written = dict[str, Stream]
"""What each source wrote, by the source's name."""
Reader = Callable[[str, Written, Tensor], Stream]
"""(destination, what its sources wrote, constants) -> the destination's input, a new tensor."""
Terms = Float[Tensor, "batch query_pos key_pos d_head"]
Carrier = Callable[[str, Terms], Terms]
"""(head, its terms A_ij P_ij v_j) -> the terms that it adds up."""


@dataclass
class SlowRun:
    """One forward pass, every tensor under the name of its node.

    Attributes:
        written: What each source writes to the residual stream; heads, to the norm behind them.
        read: The input of each destination, a tensor that nothing else reads.
        pattern: Attention of each head after the gate.
        value: Value vectors of each head.
        z: The sum over keys of pattern times value, of each head.
        logits: The logits at all positions.
    """

    written: Written = field(default_factory=dict)
    read: dict[str, Stream] = field(default_factory=dict)
    pattern: dict[str, Float[Tensor, "batch query_pos key_pos"]] = field(default_factory=dict)
    value: dict[str, Float[Tensor, "batch key_pos d_head"]] = field(default_factory=dict)
    z: dict[str, Float[Tensor, "batch query_pos d_head"]] = field(default_factory=dict)
    logits: Float[Tensor, "batch pos d_vocab"] = field(default_factory=lambda: torch.empty(0, 0, 0))

    def terms(self, head: str) -> Float[Tensor, "batch query_pos key_pos d_head"]:
        """Returns A_ij P_ij v_j of every attention edge of a head."""
        return self.pattern[head][..., None] * self.value[head][:, None]


@dataclass(frozen=True)
class Ablated:
    """What sources write and attention edges carry when ablated."""

    written: Written
    terms: dict[str, Float[Tensor, "batch query_pos key_pos d_head"]]


@dataclass(frozen=True)
class SlowScores:
    """Scores of each prompt, edges by name and attention edges by the name of their head."""

    edges: dict[str, Float[Tensor, " batch"]]
    attention_edges: dict[str, Float[Tensor, "batch query_pos key_pos"]]


def sum_of_all(dest: str, upstream: Written, constants: Tensor) -> Stream:
    """Returns the input of any destination of the whole model."""
    del dest
    return torch.stack([*upstream.values()]).sum(dim=0) + constants


def all_terms(head: str, terms: Terms) -> Terms:
    """Returns what any head of the whole model adds up."""
    del head
    return terms


def forward(
    model: Model,
    embed: Stream,
    reader: Reader = sum_of_all,
    carrier: Carrier = all_terms,
) -> SlowRun:
    """Returns the run whose `input` writes `embed` and whose destinations read by `reader`.

    Heads add up the terms that the `carrier` gives.
    """
    cfg, run = model.cfg, SlowRun()
    after = _norms_behind_heads(model)
    constants = torch.zeros_like(embed)
    run.written["input"] = embed

    def read_by(dest: str, upstream: Written, constants: Tensor) -> Stream:
        if not after:
            run.read[dest] = reader(dest, upstream, constants)
            return run.read[dest]
        rest = {name: act for name, act in upstream.items() if name[0] != "a"}
        total = run.read[dest] = reader(dest, rest, torch.zeros_like(embed))
        for layer, norm in enumerate(after):
            heads = {name: act for name, act in upstream.items() if name.startswith(f"a{layer}.")}
            if heads:
                place = f"{dest}@{layer}"
                run.read[place] = reader(place, heads, model.blocks[layer].attn.b_O)
                total = total + run_norm(norm, run.read[place])
        return total

    for layer in range(cfg.n_layers):
        block: Any = model.blocks[layer]
        before = dict(run.written)
        constants_before = constants
        normalised = {}
        for head in range(cfg.n_heads):
            for read in "qkv":
                stream = read_by(f"a{layer}.h{head}<{read}>", before, constants)
                normalised[head, read] = stream if _is_olmo_2(cfg) else run_norm(block.ln1, stream)
        queries_and_keys = _queries_and_keys(block.attn, normalised)
        for head in range(cfg.n_heads):
            name = f"a{layer}.h{head}"
            _attend(run, block.attn, name, head, *queries_and_keys[head], normalised[head, "v"])
            if carrier is not all_terms:
                run.z[name] = carrier(name, run.terms(name)).sum(dim=2)
            run.written[name] = run.z[name] @ block.attn.W_O[head]
        constants = constants + block.attn.b_O
        if not cfg.attn_only:
            # A parallel MLP does not see its own layer's heads, nor their bias.
            upstream = before if cfg.parallel_attn_mlp else dict(run.written)
            seen = constants_before if cfg.parallel_attn_mlp else constants
            stream = read_by(f"m{layer}", upstream, seen)
            if _is_olmo_2(cfg):
                run.written[f"m{layer}"] = run_norm(block.ln2, run_mlp(block.mlp, stream))
            elif after:
                run.written[f"m{layer}"] = run_norm(
                    block.ln2_post, run_mlp(block.mlp, run_norm(block.ln2, stream))
                )
            else:
                run.written[f"m{layer}"] = run_mlp(block.mlp, run_norm(block.ln2, stream))
    final = read_by("logits", dict(run.written), constants)
    final = final if cfg.normalization_type is None else run_norm(model.ln_final, final)
    run.logits = _capped(model.unembed(final), cfg.output_logits_soft_cap)
    return run


def run_norm(norm: Any, stream: Tensor) -> Tensor:
    """What a norm makes of a stream; tests put another derivative in its place, as below."""
    return norm(stream)


def run_mlp(mlp: Any, stream: Stream) -> Stream:
    """What an MLP makes of a stream."""
    return mlp(stream)


def softmax(scores: Tensor) -> Tensor:
    """The softmax over keys."""
    return scores.softmax(dim=-1)


def hand_on(_read: str, act: Tensor) -> Tensor:
    """A head's query, key or value (`q`, `k` or `v`) as its attention gets it."""
    return act


def _is_olmo_2(cfg: Any) -> bool:
    """Whether norms stand behind attention and MLP only, and over the queries of all heads."""
    return cfg.original_architecture == "Olmo2ForCausalLM"


def _norms_behind_heads(model: Model) -> list[Any]:
    """The norm of each layer's sum of heads, in models that have one."""
    blocks: Any = model.blocks
    if _is_olmo_2(model.cfg):
        return [block.ln1 for block in blocks]
    after = model.cfg.use_normalization_before_and_after
    return [block.ln1_post for block in blocks] if after else []


def embedding(model: Model, tokens: Int[Tensor, "batch pos"]) -> Stream:
    """Returns what `input` writes: token embeddings, and positions where they are added."""
    embed = model.embed(tokens)  # a lookup, and the norm behind it in models like BLOOM
    positions = model.cfg.positional_embedding_type
    assert positions in ("standard", "rotary", "alibi"), "others are not written out here"
    return embed + model.W_pos[: tokens.shape[1]] if positions == "standard" else embed


def run_circuit(
    model: Model,
    prompts: Prompts,
    edges: Collection[str],
    *,
    metric: str = "logit_diff",
    ablation: str = "corrupted",
) -> Float[Tensor, " batch"]:
    """Returns the metric of each prompt with only the named edges intact."""
    reader = _reading(edges, ablate(model, prompts, ablation))
    with torch.no_grad():
        run = forward(model, embedding(model, prompts.clean), reader)
        return _metric(model, prompts, run, metric)


def run_attention_circuit(
    model: Model,
    prompts: Prompts,
    kept: dict[str, Bool[Tensor, "batch query_pos key_pos"]],
    *,
    metric: str = "logit_diff",
    ablation: str = "corrupted",
) -> Float[Tensor, " batch"]:
    """Returns the metric of each prompt with only the attention edges kept, given by head."""
    carrier = _carrying(kept, ablate(model, prompts, ablation))
    with torch.no_grad():
        run = forward(model, embedding(model, prompts.clean), carrier=carrier)
        return _metric(model, prompts, run, metric)


def score_in_circuit(
    model: Model,
    prompts: Prompts,
    *,
    edges: Collection[str] | None = None,
    kept: dict[str, Bool[Tensor, "batch query_pos key_pos"]] | None = None,
    ablation: str = "corrupted",
) -> SlowScores:
    """Returns scores whose gradients and changes are those of a circuit's run.

    The circuit is of `edges`, or of the attention edges `kept`.
    """
    ablated = ablate(model, prompts, ablation)
    reader = sum_of_all if edges is None else _reading(edges, ablated)
    carrier = all_terms if kept is None else _carrying(kept, ablated)
    run = forward(model, embedding(model, prompts.clean).requires_grad_(), reader, carrier)
    slope = _slopes(model, prompts, run, "logit_diff")
    return _scores_of(model, run, ablated, slope)


def _reading(edges: Collection[str], ablated: Ablated) -> Reader:
    """How destinations read in the circuit of the named edges."""

    def read(dest: str, upstream: Written, constants: Tensor) -> Stream:
        total, name = constants, dest.partition("@")[0]
        for src, now in upstream.items():
            total = total + (now if f"{src}->{name}" in edges else ablated.written[src])
        # Of its own, and with a gradient also where nothing that has one is upstream of it.
        total = total.clone()
        return total if total.requires_grad else total.requires_grad_()

    return read


def _carrying(
    kept: dict[str, Bool[Tensor, "batch query_pos key_pos"]], ablated: Ablated
) -> Carrier:
    """What heads add up in the circuit of the attention edges kept."""

    def carry(head: str, terms: Terms) -> Terms:
        return torch.where(kept[head][..., None], terms, ablated.terms[head])

    return carry


def score(
    model: Model,
    prompts: Prompts,
    *,
    metric: str = "logit_diff",
    ablation: str = "corrupted",
    fractions: Sequence[float] = (1.0,),
) -> SlowScores:
    """Returns scores with the gradient averaged over points on the path from ablated to clean."""
    ablated = ablate(model, prompts, ablation)
    with torch.no_grad():
        clean = forward(model, embedding(model, prompts.clean))
    start = ablated.written["input"]
    slopes = []
    for fraction in fractions:
        embed = start + fraction * (clean.written["input"] - start)
        run = forward(model, embed.requires_grad_())
        slopes.append(_slopes(model, prompts, run, metric))
    slope = {name: torch.stack([point[name] for point in slopes]).mean(0) for name in slopes[0]}
    return _scores_of(model, clean, ablated, slope)


@torch.no_grad()
def _scores_of(
    model: Model, run: SlowRun, ablated: Ablated, slope: dict[str, Tensor]
) -> SlowScores:
    """What the sources and terms of a run are beyond the ablated ones, times the slopes."""
    edges = {}
    for dest, sources in sources_of_destinations(model).items():
        for src in sources:
            change = run.written[src] - ablated.written[src]
            behind_norm = f"{dest}@{src[1:].partition('.')[0]}" if src[0] == "a" else dest
            at = slope.get(behind_norm, slope[dest])
            edges[f"{src}->{dest}"] = (change * at).sum(dim=(1, 2))
    attention_edges = {}
    for head in run.z:
        change = run.terms(head) - ablated.terms[head]
        attention_edges[head] = (change * slope[head][:, :, None]).sum(dim=-1)
    return SlowScores(edges, attention_edges)


def sources_of_destinations(model: Model) -> dict[str, list[str]]:
    """Returns which sources each destination reads, as the model itself sums them up."""
    found: dict[str, list[str]] = {}

    def note(dest: str, upstream: Written, constants: Tensor) -> Stream:
        found.setdefault(dest.partition("@")[0], []).extend(upstream)
        return sum_of_all(dest, upstream, constants)

    with torch.no_grad():
        forward(model, embedding(model, torch.zeros(1, 1, dtype=torch.long)), note)
    return found


@torch.no_grad()
def ablate(model: Model, prompts: Prompts, ablation: str) -> Ablated:
    """Returns what components write in the corrupted run, in the mean of a template, or nothing."""
    tokens = prompts.corrupted if ablation == "corrupted" else prompts.clean
    run = forward(model, embedding(model, tokens))
    written, terms = run.written, {head: run.terms(head) for head in run.z}
    if ablation == "corrupted":
        return Ablated(written, terms)
    change = {"zero": torch.zeros_like, "mean": lambda acts: _template_means(acts, prompts)}
    return Ablated(
        {name: change[ablation](acts) for name, acts in written.items()},
        {name: change[ablation](acts) for name, acts in terms.items()},
    )


def _shared(attn: Any, head: int) -> int:
    """The key and value head that a query head uses."""
    n_kept = attn.cfg.n_key_value_heads
    return head if n_kept is None else head // (attn.cfg.n_heads // n_kept)


def _queries_and_keys(
    attn: Any, normalised: dict[tuple[int, str], Stream]
) -> list[tuple[Tensor, Tensor]]:
    """The query and key of each head, normed if the model does."""
    cfg, grouped = attn.cfg, attn.cfg.n_key_value_heads is not None
    w_k, b_k = (attn._W_K, attn._b_K) if grouped else (attn.W_K, attn.b_K)
    queries, keys = [], []
    for head in range(cfg.n_heads):
        shared = _shared(attn, head)
        queries.append(hand_on("q", normalised[head, "q"] @ attn.W_Q[head] + attn.b_Q[head]))
        keys.append(hand_on("k", normalised[head, "k"] @ w_k[shared] + b_k[shared]))
    if _is_olmo_2(cfg):  # one norm over all heads
        queries = [*run_norm(attn.q_norm, torch.cat(queries, dim=-1)).split(cfg.d_head, dim=-1)]
        keys = [*run_norm(attn.k_norm, torch.cat(keys, dim=-1)).split(cfg.d_head, dim=-1)]
    if cfg.use_qk_norm:
        queries = [run_norm(attn.q_norm, q) for q in queries]
        keys = [run_norm(attn.k_norm, k) for k in keys]
    return list(zip(queries, keys, strict=True))


def _attend(
    run: SlowRun, attn: Any, name: str, head: int, q: Tensor, k: Tensor, read: Stream
) -> None:
    """Computes one head from its query, its key and its value's input after the norm."""
    cfg, shared = attn.cfg, _shared(attn, head)
    grouped = cfg.n_key_value_heads is not None
    w_v, b_v = (attn._W_V, attn._b_V) if grouped else (attn.W_V, attn.b_V)
    v = hand_on("v", read @ w_v[shared] + b_v[shared])
    if cfg.clip_qkv is not None:
        q, k, v = (part.clamp(-cfg.clip_qkv, cfg.clip_qkv) for part in (q, k, v))
    if cfg.positional_embedding_type == "rotary":
        # It turns all heads alike, and wants an axis for them.
        q, k = attn.apply_rotary(q[:, :, None])[:, :, 0], attn.apply_rotary(k[:, :, None])[:, :, 0]
    scores = _capped(q @ k.mT / attn.attn_scale, cfg.attn_scores_soft_cap)
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])  # query less key
    if cfg.positional_embedding_type == "alibi":
        scores = scores - distance * 2 ** (-8 * (head + 1) / cfg.n_heads)
    reach = cfg.window_size if attn.attn_type == "local" else q.shape[1]
    scores = scores.masked_fill((distance < 0) | (distance >= reach), -torch.inf)
    if cfg.use_attention_sinks:  # one more key, that has a score and no value
        sink = attn.sinks[head].expand(*scores.shape[:2], 1)
        pattern = softmax(torch.cat([scores, sink], dim=-1))[..., :-1]
    else:
        pattern = softmax(scores)
    if is_gated(attn):
        pattern = pattern * _gate(scores + attn.hook_gate.bias)
    run.pattern[name], run.value[name], run.z[name] = pattern, v, pattern @ v


def _gate(logits: Tensor) -> Tensor:
    """1 where the gate logit is positive, differentiated as if it were its sigmoid."""
    soft = logits.sigmoid()
    return (logits > 0).to(logits.dtype) + soft - soft.detach()


def _capped(values: Tensor, cap: float | None) -> Tensor:
    return cap * (values / cap).tanh() if cap is not None and cap > 0 else values


def _slopes(model: Model, prompts: Prompts, run: SlowRun, metric: str) -> dict[str, Tensor]:
    """Gradients of a run's metric at every destination's input and at every head's z."""
    places = run.read | run.z
    total = _metric(model, prompts, run, metric).sum()
    # What padding computes, no metric reads; and a whole last layer may have its gates shut.
    found = torch.autograd.grad(
        total, list(places.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(places, found, strict=True))


def _metric(model: Model, prompts: Prompts, run: SlowRun, metric: str) -> Float[Tensor, " batch"]:
    rows = torch.arange(len(prompts))
    logits = clean = run.logits[rows, prompts.last]
    if metric == "kl_div":  # the only one that looks at the clean run
        with torch.no_grad():
            clean = forward(model, embedding(model, prompts.clean)).logits[rows, prompts.last]
    return METRICS[metric](logits, prompts, clean)


def _template_means(acts: Tensor, prompts: Prompts) -> Tensor:
    """Each prompt's activations replaced by the mean over the prompts of its template."""
    means = []
    for template in prompts.templates:
        rows = [i for i, other in enumerate(prompts.templates) if other == template]
        means.append(acts[rows].mean(dim=0))
    return torch.stack(means)
