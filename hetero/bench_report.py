"""What `hetero bench` measured, as text."""

from typing import Any

from hetero.sizes import format_size


def describe(result: dict[str, Any]) -> str:
    """The text form of `run_bench`'s document: the ceiling first."""
    ceiling, speed = result["decode_ceiling_tokens_per_second"], result["decode_tokens_per_second"]
    read = f"{result['read_bandwidth_bytes_per_second'] / 1e9:.1f} GB/s read by {result['threads']} threads"
    bytes_read = f"{format_size(result['weight_bytes_per_token'])} of weights"
    if result["depth"]:
        bytes_read += f" and {format_size(result['kv_bytes_at_depth'])} of cache"
    word = "extrapolated" if result["extrapolated_from_layers"] else "measured"
    rounds = f"{result['repeat']} x {result['generated_tokens']} tokens"
    width = max(len(word), len("predicted"))
    lines = [
        f"decode at depth {result['depth']:,}",
        f"  {'ceiling':<{width}}  {_speed(ceiling)} tok/s  ({bytes_read} a token, {read})",
        f"  {word:<{width}}  {_speed(speed)} tok/s  {speed / ceiling:.0%} of the ceiling; best"
        f" {_speed(result['decode_tokens_per_second_best'], 0)} ({rounds})",
        _predicted(result, "decode", width),
        f"  {'time':<{width}}  {_shares(result['parts'])}",
        f"prefill of {result['prompt_tokens']:,} tokens",
        f"  {word:<{width}}  {_speed(result['prefill_tokens_per_second'])} tok/s  best"
        f" {_speed(result['prefill_tokens_per_second_best'], 0)}",
        _predicted(result, "prefill", width),
        *(_slice_lines(result) if "slice" in result else []),
        f"loaded in {result['load_seconds']:.1f} s, peak resident memory {format_size(result['peak_resident_bytes'])}",
    ]
    return "\n".join(lines + _comparison_lines(result))


def _predicted(result: dict[str, Any], phase: str, width: int) -> str:
    """What the planner says."""
    speed, measured = result[f"predicted_{phase}_tokens_per_second"], result[f"{phase}_tokens_per_second"]
    return f"  {'predicted':<{width}}  {_speed(speed)} tok/s  {speed / measured - 1:+.0%} (hetero plan)"


def _speed(tokens_per_second: float, width: int = 10) -> str:
    return f"{tokens_per_second:{width},.{1 if tokens_per_second >= 10 else 2}f}"


def _shares(parts: dict[str, float]) -> str:
    whole = sum(parts.values())
    return ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in parts.items()) + f" of {whole * 1e3:.1f} ms"


def _comparison_lines(result: dict[str, Any]) -> list[str]:
    compare = result.get("compare")
    if compare is None:
        return []
    lines = [f"beside llama.cpp {result['versions']['llama-cpp-python']} (llama-cpp-python)"]
    for name, row in compare["variants"].items():
        lines.append(
            f"  weights {name:<15} decode {row['decode_tokens_per_second']:8,.1f} tok/s"
            f"  prefill {row['prefill_tokens_per_second']:8,.1f} tok/s  loaded in {row['load_seconds']:.1f} s"
        )
    lines += [f"  weights {name}: left out, {why}" for name, why in compare["left_out"].items()]
    if compare["decode_ratio"] is not None:
        lines.append(
            f"  hetero over the better one: decode {compare['decode_ratio']:.2f} x,"
            f" prefill {compare['prefill_ratio']:.2f} x"
        )
    return lines


def _slice_lines(document: dict[str, Any]) -> list[str]:
    """How the figures came about."""
    made, touched = document["slice"], document["experts_touched"]
    lines = [
        f"{len(made['layers'])} of {document['layers']} layers were made and measured, of {document['model']}:"
        f" decode {made['decode_tokens_per_second']:,.1f} tok/s, prefill {made['prefill_tokens_per_second']:,.1f} tok/s"
    ]
    for phase, row in touched.items():
        lines.append(
            f"  {phase} of {row['tokens']} tokens chose {row['distinct']:,.1f} different experts a layer;"
            f" uniform routing {row['expected']:,.1f}"
        )
    return lines
