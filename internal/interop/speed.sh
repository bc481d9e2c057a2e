#!/bin/sh
# Times llmq eval beside other programs' prompt evaluation: 512 tokens at a time, in turns, so that a disturbance hits
# all of them.
#
#	speed.sh LLMQ TEXT "MODEL.gguf ..." [PEER ...]
#
# llmq's figure is what its user sees: reading the weights, all tokens through all layers, and the head for the half of
# them that is scored. A peer is llama.cpp's or ik_llama.cpp's llama-perplexity, which does the same, timed by itself over
# its first pass, or llama-bench, which has the weights in memory and runs the head for one token in 512. Their inputs are
# rounded to eight bits, as llmq's are with --activations q8, the second figure, where weights have at most eight.
set -eu
llmq=$1 text=$2 models=$3
shift 3
threads=${THREADS:-2} rounds=${ROUNDS:-3} chunks=${CHUNKS:-8}

evaluate() { # model flags...
	"$llmq" eval "$@" --text "$text" --chunks "$chunks" --threads "$threads" --json 2>/dev/null |
		sed -n 's/.*"tokens_per_second": *\([0-9]*\).*/\1/p'
}

prompt() { # peer model
	case $(basename "$1") in
	*perplexity*)
		"$1" -m "$2" -f "$text" -c 512 --chunks "$chunks" -t "$threads" 2>&1 | awk -v chunks="$chunks" '
			match($0, /n_seq=[0-9]+/) {
				sequences = substr($0, RSTART+6, RLENGTH-6) + 0
				if (sequences > chunks) sequences = chunks
			}
			match($0, /[0-9.]+ seconds per pass/) {printf "%.0f", 512 * sequences / substr($0, RSTART, RLENGTH-17)}' ;;
	*)
		"$1" -m "$2" -p 512 -n 0 -t "$threads" -r 1 2>/dev/null | awk -F '|' '/pp512/ {printf "%.0f", $(NF-1)}' ;;
	esac
}

for model in $models; do
	for round in $(seq "$rounds"); do
		printf '%-22s round %s: llmq eval %s, with q8 %s' "$(basename "$model")" "$round" "$(evaluate "$model")" \
			"$(evaluate "$model" --activations q8)"
		for peer in "$@"; do
			printf ', %s %s' "$peer" "$(prompt "$peer" "$model")"
		done
		echo ' tokens/s'
	done
done
