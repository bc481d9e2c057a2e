#!/usr/bin/env bash
# Quantizes the built-in model with workers in network namespaces of their own, and has them, the coordinator and the network
# fail in all ways. Every run must write the file that one process writes.
#
#	engine/cluster/namespaces.sh LLMQ
#
# It needs root or user namespaces, and says so where it has neither.
set -euo pipefail
llmq=$(realpath "$1")
if [ -z "${LLMQ_NAMESPACES:-}" ]; then
	export LLMQ_NAMESPACES=1
	flags=-nm
	[ "$(id -u)" = 0 ] || flags=-rnm
	if ! command -v ip >/dev/null || ! unshare $flags sh -c 'mount -t tmpfs none /run && ip netns add probe' 2>/dev/null; then
		echo "SKIPPED: no network namespaces to be had: it takes root or user namespaces, and the command ip"
		exit 0
	fi
	exec unshare $flags "$0" "$llmq"
fi

repo=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d)
end() { # ends the processes that this script has started and that still run: another's may have the number of one that has ended
	local running
	running=$(jobs -pr)
	[ -z "$running" ] || kill -KILL $running 2>/dev/null || true
	wait 2>/dev/null || true
}
finish() {
	end
	rm -rf "$dir"
}
trap finish EXIT
mount -t tmpfs none /run
ip link set lo up
for n in 1 2; do
	ip netns add w$n
	ip link add head$n type veth peer name eth0 netns w$n
	ip addr add 10.77.$n.1/24 dev head$n
	ip link set head$n up
	ip -n w$n addr add 10.77.$n.2/24 dev eth0
	ip -n w$n link set eth0 up
done
export LLMQ_TOKEN=namespaces TMPDIR=$dir
cat "$(go env GOROOT)"/src/{sort,fmt,strconv,net/http}/*.go > "$dir/calib.txt"
quantize=("$llmq" quantize "$repo/testdata/gopher-4m" --calib "$dir/calib.txt" --seq-len 256 --calib-tokens 32768 --bits 4 --refine 4
	--output-hessian off --threads 1)

coordinate() { # starts a coordinator, which is $head
	"${quantize[@]}" -o "$dir/out.gguf" --force --work "$dir/work" --listen 0.0.0.0:4222 --ack-wait 2s >/dev/null 2>>"$dir/log" &
	head=$!
}
work() { # starts the worker in namespace $1, which is worker[$1]
	until [ -f "$dir/work/run.json" ]; do alive "worker $1 could start"; done
	ip netns exec "w$1" "$llmq" worker "nats://10.77.$1.1:4222" --work "$dir/work" --threads 1 2>>"$dir/log$1" &
	worker[$1]=$!
}
alive() { # waits a little; it fails if the coordinator has ended before what $1 says
	kill -0 "$head" 2>/dev/null || { cat "$dir"/log*; echo "FAILED: the coordinator has ended before $1"; exit 1; }
	sleep 0.05
}
said() { # waits until the coordinator has said something
	until grep -q "$1" "$dir/log"; do alive "it said: $1"; done
}
takes() { # waits until worker $1 takes part
	until grep -q "takes part" "$dir/log$1" 2>/dev/null; do alive "worker $1 took part"; done
}
worker=()
begin() { # a scenario: coordinator and both workers
	rm -rf "$dir/work" "$dir/log"* "$dir/out.gguf"
	coordinate
	work 1
	work 2
	takes 1
	takes 2
}
same() { # waits for the end of a scenario, and compares
	wait "$head" || { cat "$dir/log"; echo "FAILED: $1: the coordinator ends with $?"; exit 1; }
	[ "$(sha256sum < "$dir/out.gguf")" = "$want" ] || { echo "FAILED: $1: another file"; exit 1; }
	end
	echo "ok ${SECONDS}s  $1"
}

"${quantize[@]}" -o "$dir/out.gguf" >/dev/null 2>&1
want=$(sha256sum < "$dir/out.gguf")

begin
same "two workers"

begin
said "layer 2/"
kill -KILL "${worker[1]}"
same "a worker is killed"

begin
said "layer 2/"
ip link set head1 down
sleep 6
ip link set head1 up
same "a worker's link is down for 6 s"

begin
said "layer 2/"
kill -STOP "${worker[1]}"
sleep 6
kill -CONT "${worker[1]}"
same "a worker is stopped for 6 s, and comes back late"

begin
said "layer 2/"
kill -KILL "$head"
wait "$head" || true
: > "$dir/log"
coordinate
same "coordinator and server are killed, with all that JetStream keeps, and started again"

begin
said "layer 3/"
kill -KILL "$head" "${worker[@]}"
wait "$head" "${worker[@]}" || true
: > "$dir/log"
rm -f "$dir/log2"
coordinate
work 2
same "all are killed, and started again with a worker less"
