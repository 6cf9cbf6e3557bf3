"""What the columns of the report's tables mean, with their units: shown at a column's head."""

COLUMNS = {
    "attribution": "Components of this model that hold the target's share of all absolute "
    "attribution; no intervention.",
    "attribution_dense": "Components of the dense model that hold the target's share of all "
    "absolute attribution; no intervention.",
    "attribution_ratio": "That count of the dense model over the other's. It favours gated models: "
    "an attention edge that is shut scores exactly 0.",
    "attribution_sparse": "Components of the sparse model that hold the target's share of all "
    "absolute attribution; no intervention.",
    "accuracy": "Share of the reporting prompts that the model answers right.",
    "by_chance": "About what the Jaccard index of random circuits of the same sizes would be.",
    "ce": "Cross-entropy on held-out text, in nats per token.",
    "cmd": "Area between the faithfulness curve and 1, over the share of components (MIB). "
    "Smaller is better.",
    "components": "How many components of this kind the model has.",
    "context": "Tokens in each sequence that cross-entropy and density were measured on.",
    "cpr": "Area under the faithfulness curve over the share of components (MIB). Greater is "
    "better.",
    "dense": "Size of the dense model's circuit, in components.",
    "density": "Share of allowed attention edges that the gate leaves open on held-out text.",
    "dense_heads": "Heads of the dense model's circuit that do this.",
    "depth": "Edges on the longest path from the input to the logits.",
    "direct": "What the head itself adds to the difference of the answers' logits and the others', "
    "in logits, mean over prompts.",
    "duplicate_token": "Mean attention to the first occurrence of the same token, 0 to 1.",
    "edges": "Edges in the circuit.",
    "edges_k": "Edges of the circuit that end in keys.",
    "edges_logits": "Edges of the circuit that end in the logits.",
    "edges_mlp": "Edges of the circuit that end in MLPs.",
    "edges_q": "Edges of the circuit that end in queries.",
    "edges_v": "Edges of the circuit that end in values.",
    "faithfulness": "Share of the behaviour that the circuit recovers when everything else is "
    "ablated, with its 95 % interval over prompts. 1: as the whole model; 0: as nothing.",
    "faithfulness_dense": "Share of the behaviour that the dense model's circuit recovers, with "
    "its 95 % interval over prompts.",
    "faithfulness_interval": "What was drawn for the interval of faithfulness, or why there is "
    "none.",
    "faithfulness_sizing": "Faithfulness on the prompts that chose the size: at the target by "
    "choice, so more than fresh prompts show.",
    "faithfulness_sparse": "Share of the behaviour that the sparse model's circuit recovers, with "
    "its 95 % interval over prompts.",
    "found_in": "The model that the circuit was found in.",
    "granularity": "What is counted: heads, MLPs, edges between components, or attention edges "
    "(one query looking at one key inside a head).",
    "halves": "On how many halves of the ranking and sizing prompts the circuit was found again.",
    "head": "Layer and head, counted from 0.",
    "heads": "Heads of the circuit that do this.",
    "holding_attribution": "Components that hold the target's share of all absolute attribution; "
    "no intervention.",
    "in_all": "Components that are in the circuits of all halves.",
    "in_any": "Components that are in the circuit of one half at least.",
    "in_circuit": "Whether the head is in its model's circuit.",
    "in_half": "Components that are in the circuits of half of the halves at least.",
    "induction": "Mean attention to what followed the first occurrence of the same token, 0 to 1.",
    "interval": "What was drawn for the interval of the size, or why there is none.",
    "jaccard": "Shared components as a share of those in either circuit, 0 to 1.",
    "largest": "The greatest ratio of a seed.",
    "mean_in_degree": "Edges into a node, mean over heads and MLPs.",
    "mean_out_degree": "Edges out of a node, mean over heads and MLPs.",
    "measured_on": "reporting: fresh prompts; sizing: the prompts that the circuit was found on.",
    "metric": "The task's metric of the whole model, mean over the reporting prompts.",
    "minimal": "Whether no single component can go without missing the target on the prompts that "
    "chose the size.",
    "model": "Which model.",
    "nodes": "Heads and MLPs in the circuit.",
    "only_dense": "Components in the dense model's circuit alone.",
    "only_sparse": "Components in the sparse model's circuit alone.",
    "own": "Faithfulness of the circuit that was found in that model itself.",
    "p": "The paired bootstrap's p-value of equal sizes.",
    "paths": "Ways from the input to the logits along the circuit's edges.",
    "prefix": "The size before pruning, with its 95 % interval over prompts.",
    "prefix_dense": "Size of the dense model's circuit before pruning.",
    "prefix_ratio": "The ratio of the sizes before pruning, with its 95 % interval over prompts.",
    "prefix_sparse": "Size of the sparse model's circuit before pruning.",
    "pruned": "Whether components were taken out after the search.",
    "previous_token": "Mean attention to the token before, 0 to 1.",
    "prompts": "How many prompts faithfulness is measured on.",
    "random": "Mean faithfulness of random circuits of as many components.",
    "random_same_size": "Mean faithfulness of random circuits of as many components.",
    "ratio": "The dense model's size over the other's, with its 95 % interval. Above 1: the other "
    "needs fewer.",
    "rest": "Faithfulness of everything outside the circuit; near 0 if the circuit is complete.",
    "role": "What the head attends to most, from a mean of 0.3 on.",
    "run_in": "The model that the circuit was run in.",
    "seeds": "How many training seeds.",
    "shared": "Components in both circuits.",
    "similarity": "Cosine of the two heads' attention patterns, 0 to 1.",
    "size": "Components in the circuit (attention edges: mean over templates), with its 95 % "
    "interval over prompts.",
    "smallest": "The smallest ratio of a seed.",
    "sparse": "Size of the sparse model's circuit, in components.",
    "sparse_heads": "Heads of the sparse model's circuit that do this.",
    "target": "Share of the behaviour that the circuit must recover on the sizing prompts.",
    "task": "The behaviour.",
    "templates": "95 % interval of the ratio when whole templates are drawn in place of prompts.",
    "to_answer": "Mean attention from the last position to the answer, 0 to 1.",
    "to_changed": "Mean attention from the last position to the changed tokens, 0 to 1.",
    "tokenizer": "Fingerprint of the model's tokenizer.",
    "twin": "The head of the other model whose attention is most like this one's.",
    "without_last": "Faithfulness without the component that was added last.",
}
