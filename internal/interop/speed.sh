#!/bin/sh
# Times llmq eval beside other programs' prompt evaluation: 512 tokens at a time, in turns, so that a disturbance hits
# all of them.
#
#	speed.sh LLMQ TEXT "MODEL.gguf ..." [LLAMA-BENCH ...]
#
# llmq's figure is what its user sees: reading the weights, all tokens through all layers, and the head for the half of
# them that is scored. llama-bench's has the weights in memory, and runs the head for one token in 512. Its inputs are
# rounded to eight bits, as llmq's are with --activations q8, the second figure, where weights have at most eight.
set -eu
llmq=$1 text=$2 models=$3
shift 3
threads=${THREADS:-2} rounds=${ROUNDS:-3} chunks=${CHUNKS:-8}

evaluate() { # model flags...
	"$llmq" eval "$@" --text "$text" --chunks "$chunks" --threads "$threads" --json 2>/dev/null |
		sed -n 's/.*"tokens_per_second": *\([0-9]*\).*/\1/p'
}

for model in $models; do
	for round in $(seq "$rounds"); do
		printf '%-22s round %s: llmq eval %s, with q8 %s' "$(basename "$model")" "$round" "$(evaluate "$model")" \
			"$(evaluate "$model" --activations q8)"
		for bench in "$@"; do
			printf ', %s %s' "$bench" "$("$bench" -m "$model" -p 512 -n 0 -t "$threads" -r 1 2>/dev/null |
				awk -F '|' '/pp512/ {printf "%.0f", $(NF-1)}')"
		done
		echo ' tokens/s'
	done
done
