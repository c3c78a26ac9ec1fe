#!/usr/bin/env bash
# Takes the figures of BENCHMARKS.md on this machine, all in one run: the bare
# store beside a bare Badger loop, then real processes over loopback, then an idle
# server. Prints a Markdown table; takes about five minutes.
#
#   deploy/bench/run.sh [RUNS]     RUNS (default 3) counted runs of each; the median is printed with the extremes
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-3}
work=$(mktemp -d)
server=
finish() {
	if [ -n "$server" ]; then
		kill "$server" 2>/dev/null || true
		wait "$server" 2>/dev/null || true
	fi
	rm -rf "$work"
}
trap finish EXIT

go build -trimpath -o "$work/runnel" ./services/runnel
address=127.0.0.1:$((20000 + RANDOM % 20000))
runnel() { "$work/runnel" --bootstrap "$address" "$@"; }

# start runs a fresh server: every scenario begins with an empty disk.
start() {
	rm -rf "$work/data"
	sync # what the scenario before left for the disk is not this one's
	"$work/runnel" up --data-dir "$work/data" --listen "$address" >"$work/log" 2>&1 &
	server=$!
	until runnel topics list >/dev/null 2>&1; do :; done
}
stop() {
	kill "$server"
	wait "$server" || true
	server=
}

# field prints a number of the JSON that `runnel bench -o json` writes.
field() { sed -n "s/^ *\"$1\": \([0-9.e+-]*\),*$/\1/p" | head -1; }

# spread prints the median of the numbers on stdin and their extremes.
spread() { sort -g | awk '{v[NR]=$1} END {printf "%.4g (%.4g to %.4g)", v[int((NR+1)/2)], v[1], v[NR]}'; }

# row prints a line of the table: its name, then the spread of the file's numbers.
row() { printf '| %s | %s | %s |\n' "$1" "$(spread <"$2")" "$3"; }

echo "| what | median (min to max) of $runs | unit |"
echo "|---|---|---|"

go test -run '^$' -bench '(Append|Badger)/./size=65536/producers=128$' -benchtime 2s -count "$runs" ./services/storage/internal/store >"$work/store"
for set in synced replicated; do
	for name in Append Badger; do
		grep -E "^Benchmark$name/set=$set/" "$work/store" | grep -oE '[0-9.]+ MB/s' | cut -d' ' -f1 >"$work/figures" || true
		[ ! -s "$work/figures" ] || row "store: $name, 64 KiB batches, 128 producers, $set" "$work/figures" MB/s
	done
done

produce() { # name, record size, records, durability, further flags
	local name=$1 size=$2 records=$3 durability=$4
	shift 4
	: >"$work/sent" && : >"$work/sent-mb" && : >"$work/read" && : >"$work/read-mb"
	for _ in $(seq "$runs"); do
		start
		runnel topics create t --config durability="$durability" >/dev/null
		runnel bench produce --topic t --record-size "$size" --records "$records" -o json "$@" >"$work/json" 2>/dev/null
		field records_per_second <"$work/json" >>"$work/sent"
		field megabytes_per_second <"$work/json" >>"$work/sent-mb"
		runnel bench consume --topic t --records "$records" -o json >"$work/json" 2>/dev/null
		field records_per_second <"$work/json" >>"$work/read"
		field megabytes_per_second <"$work/json" >>"$work/read-mb"
		stop
	done
	row "produce $name" "$work/sent-mb" MB/s
	row "produce $name" "$work/sent" records/s
	row "consume the same" "$work/read-mb" MB/s
	row "consume the same" "$work/read" records/s
}
produce "1 KiB, 1 partition, acks=leader, replicated" 1024 1000000 replicated --acks leader
produce "100 B, 1 partition, acks=leader, replicated" 100 5000000 replicated --acks leader
produce "1 KiB, 1 partition, acks=all, synced" 1024 500000 synced --acks all

for durability in replicated synced; do
	: >"$work/p50" && : >"$work/p99" && : >"$work/max"
	for _ in $(seq "$runs"); do
		start
		runnel topics create t --config durability="$durability" >/dev/null
		runnel bench latency --topic t --record-size 1024 --records 100000 --rate 10000 -o json >"$work/json" 2>/dev/null
		field p50 <"$work/json" >>"$work/p50"
		field p99 <"$work/json" >>"$work/p99"
		field max <"$work/json" >>"$work/max"
		stop
	done
	row "produce to consume at 10,000 x 1 KiB/s, $durability: p50" "$work/p50" ms
	row "the same: p99" "$work/p99" ms
	row "the same: max" "$work/max" ms
done

# An idle server with 1,000 partitions: memory, and processor time over 20 s.
: >"$work/rss" && : >"$work/cpu" && : >"$work/ready" && : >"$work/again"
for _ in $(seq "$runs"); do
	before=$(date +%s%N)
	start
	echo $((($(date +%s%N) - before) / 1000000)) >>"$work/ready"
	runnel topics create idle --partitions 1000 >/dev/null
	ticks() { awk '{print $14 + $15}' "/proc/$server/stat"; }
	begin=$(ticks)
	timeout 20 tail -f /dev/null || true
	echo "$begin $(ticks)" | awk -v hz="$(getconf CLK_TCK)" '{print ($2 - $1) / hz / 20 * 100}' >>"$work/cpu"
	awk '/^VmRSS/ {print $2 / 1024}' "/proc/$server/status" >>"$work/rss"
	kill -9 "$server" && wait "$server" 2>/dev/null || true
	before=$(date +%s%N)
	"$work/runnel" up --data-dir "$work/data" --listen "$address" >"$work/log" 2>&1 &
	server=$!
	until runnel topics describe idle >/dev/null 2>&1; do :; done
	echo $((($(date +%s%N) - before) / 1000000)) >>"$work/again"
	stop
done
row "from start to the first answer" "$work/ready" ms
row "the same after kill -9, with 1,000 partitions" "$work/again" ms
row "idle with 1,000 partitions: memory (RSS)" "$work/rss" MiB
row "idle with 1,000 partitions: processor" "$work/cpu" "% of a core"
