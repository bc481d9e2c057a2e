#!/bin/sh
# Times one layer from its Hessian to the bytes of Q4_K (BenchmarkLayer of package gptq, without coordinate descent) beside
# the GPTQ authors' fasterquant under PyTorch, in turns, so that a disturbance hits both.
#
#	gptq_speed.sh AUTHORS
#
# AUTHORS is a folder with gptq.py and quant.py of github.com/IST-DASLab/gptq; PYTHON a Python with PyTorch.
set -eu
authors=$1
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3} threads=${THREADS:-2} rounds=${ROUNDS:-3}
export OPENBLAS_NUM_THREADS="$threads" OMP_NUM_THREADS="$threads" MKL_NUM_THREADS="$threads"

for round in $(seq "$rounds"); do
	ours=$(cd "$here/../.." && GOMAXPROCS="$threads" go test ./gptq -run '^$' -bench '^BenchmarkLayer$/^gptq$' -benchtime 3x |
		awk '/ns\/op/ {printf "%.3f", $3/1e9}')
	theirs=$("$python" "$here/gptq_speed.py" "$authors" 4096 "$threads" 2>/dev/null)
	echo "$ours $theirs" | awk -v round="$round" \
		'{printf "round %s: llmq %s s, fasterquant %s s, ratio %.2f\n", round, $1, $2, $2/$1}'
done
