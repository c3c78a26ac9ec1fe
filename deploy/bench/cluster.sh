#!/usr/bin/env bash
# What replication costs and how fast it recovers, measured on the cluster of
# deploy/cluster (3 storage nodes, 2 metadata nodes, etcd, all on this machine): each
# scenario starts a fresh cluster, prints a small table and a verdict for each aim, and
# ends with 1 where one was missed. The ports of that cluster must be free.
#
#   deploy/bench/cluster.sh throughput|latency|failover|shutdown|idle
#
# Sizes are set by environment variables, named below with their defaults. DIR is where
# the data goes (default: a directory of TMPDIR).
set -euo pipefail
cd "$(dirname "$0")/../.."
scenario=${1:-}
work=$(mktemp -d ${DIR:+-p "$DIR"})
export RUNNEL_CLUSTER_DIR=$work/cluster
export RUNNEL_BOOTSTRAP=127.0.0.1:7421,127.0.0.1:7422,127.0.0.1:7423
readonly nodes=(storage-1 storage-2 storage-3)
missed=0
finish() {
	deploy/cluster/cluster.sh down >/dev/null 2>&1 || true
	rm -rf "$work"
}
trap finish EXIT

runnel() { "$work/cluster/bin/runnel" "$@"; }
now() { date +%s%N; }
since() { echo $((($(now) - $1) / 1000000)); }
is() { awk "BEGIN {exit !($1)}"; }
field() { sed -n "s/^ *\"$1\": \([0-9.e+-]*\),*$/\1/p" | head -1; }
value() { awk -v name="$2" '$1 == name {print $2}' "$work/$1"; }
pid() { head -1 "$work/cluster/$1.pid"; }
# pause waits without a process that takes processor time.
pause() { read -rt "$1" <> <(:) || true; }
# spread prints the median of the numbers on stdin and their extremes.
spread() { sort -g | awk '{v[NR]=$1} END {printf "%.4g (%.4g to %.4g)", v[int((NR+1)/2)], v[1], v[NR]}'; }
median() { sort -g | awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}'; }
table() { printf '\n| %s | figure | |\n|---|---|---|\n' "$1"; }
row() { echo "| $1 | $2 | |"; }
verdict() { # what, condition for awk, figure
	if is "$2"; then
		echo "| $1 | $3 | met |"
	else
		echo "| $1 | $3 | MISSED |"
		missed=1
	fi
}
start() {
	deploy/cluster/cluster.sh up >"$work/up" 2>&1 || { cat "$work/up" >&2; exit 1; }
	[ -x "$work/load" ] || go build -trimpath -o "$work/load" ./deploy/bench/load
	table "$1"
}
create() { # topic, partitions, replication factor
	runnel topics create "$1" --partitions "$2" --replication-factor "$3" --config durability=replicated >/dev/null
	healthy "$1"
}
healthy() { until runnel topics describe "$1" --unhealthy >/dev/null 2>&1; do pause 0.2; done; }
# leaders prints the nodes that lead the partitions of a topic, and led how many of
# these a node leads.
leaders() { runnel topics describe "$1" -o json | sed -n 's/^ *"leader": \([0-9]*\|null\),*$/\1/p'; }
led() { leaders "$1" | grep -c "^$2$" || true; }
# name is the storage node of an id.
name() { echo "storage-$(($1 - 2))"; }
send() { # name, flags
	local file=$work/$1
	shift
	"$work/load" -bootstrap "$RUNNEL_BOOTSTRAP" "$@" >"$file" 2>&1 || echo "failures 1" >>"$file"
}

# throughput: RUNS=3 times RECORDS=1000000 of 1 KiB to one partition with one replica
# and acks=leader, then with three and acks=all, on the same cluster.
throughput() {
	start "throughput: ${RECORDS:-1000000} records of 1 KiB, ${RUNS:-3} runs of each, in turns"
	local run
	for run in $(seq "${RUNS:-3}"); do
		create "one-$run" 1 1
		create "three-$run" 1 3
		runnel bench produce --topic "one-$run" --acks leader --record-size 1024 --records "${RECORDS:-1000000}" -o json 2>/dev/null | field megabytes_per_second >>"$work/one"
		runnel bench produce --topic "three-$run" --acks all --record-size 1024 --records "${RECORDS:-1000000}" -o json 2>/dev/null | field megabytes_per_second >>"$work/three"
		runnel topics delete "one-$run" "three-$run" >/dev/null 2>&1 || true
	done
	local share
	share=$(awk "BEGIN {print $(median <"$work/three") / $(median <"$work/one")}")
	row "1 replica, acks=leader" "$(spread <"$work/one") MB/s"
	row "3 replicas, acks=all" "$(spread <"$work/three") MB/s"
	verdict "at least 0.25 of that (aim 0.33)" "$share >= 0.25" "$share"
}

# latency: RATE=5000 records of 1 KiB per second for RECORDS=150000 of them, acks=all,
# RUNS=3 times.
latency() {
	start "latency: ${RATE:-5000} x 1 KiB/s, 3 replicas, acks=all, ${RUNS:-3} runs"
	create paced 3 3
	local run
	for run in $(seq "${RUNS:-3}"); do
		runnel bench produce --topic paced --acks all --record-size 1024 --rate "${RATE:-5000}" --records "${RECORDS:-150000}" -o json 2>/dev/null >"$work/json"
		field p50 <"$work/json" >>"$work/p50"
		field p99 <"$work/json" >>"$work/p99"
	done
	row "p50" "$(spread <"$work/p50") ms"
	verdict "p99 under 20 ms" "$(median <"$work/p99") < 20" "$(spread <"$work/p99") ms"
}

# failover: kills -9 the node that leads the only partition of a topic under 1 MB/s, and
# takes the time without an acknowledgement; RUNS=5 times. LEASE=6 is the lease in
# seconds.
failover() {
	start "failover: kill -9 of a leader, ${RUNS:-5} times"
	create busy 1 3
	local run victim longest
	for run in $(seq "${RUNS:-5}"); do
		send busy -seconds 25 -stall 1h -target busy:1:1 &
		local writer=$!
		pause 5
		victim=$(name "$(leaders busy)")
		kill -9 "$(pid "$victim")"
		wait "$writer"
		value busy pause_ms >>"$work/pause"
		value busy failures >>"$work/failures"
		deploy/cluster/cluster.sh up >/dev/null 2>&1
		healthy busy
	done
	longest=$(sort -g "$work/pause" | tail -1)
	verdict "kill to the first new acknowledgement within the lease and 2 s, longest" "$longest <= (${LEASE:-6} + 2) * 1000" "$(spread <"$work/pause") ms"
	verdict "failed acknowledgements" "$(awk '{s += $1} END {print s}' "$work/failures") == 0" "$(awk '{s += $1} END {print s}' "$work/failures")"
}

# shutdown: SIGTERM for a node that leads 1,000 of PARTITIONS=3000 partitions of 3
# replicas, each of which gets a record every 2 seconds.
shutdown() {
	local partitions=${PARTITIONS:-3000} node=3 begin moved
	start "controlled shutdown with $partitions partitions of 3 replicas"
	create many "$partitions" 3
	row "led by the node before" "$(led many $node)"
	send many -seconds 40 -stall 150ms -record-size 100 -target "many:$partitions:0.15" &
	local writer=$!
	pause 15
	begin=$(now)
	kill -TERM "$(pid "$(name $node)")"
	until [ "$(led many $node)" = 0 ]; do :; done
	moved=$(since "$begin")
	while kill -0 "$(pid "$(name $node)")" 2>/dev/null; do :; done
	row "the process has ended after" "$(since "$begin") ms"
	wait "$writer"
	verdict "moved in under 5 s" "$moved < 5000" "$moved ms"
	verdict "no record waited over 200 ms" "$(value many max_ms) <= 200" "$(value many max_ms) ms"
	verdict "no failed acknowledgement" "$(value many failures) == 0" "$(value many failures)"
}

# idle: PARTITIONS=1000 of 3 replicas, nobody writes; the processor time of 20 s, after
# SETTLE=60.
idle() {
	local partitions=${PARTITIONS:-1000} node
	declare -A begin
	start "idle: $partitions partitions of 3 replicas"
	create idle "$partitions" 3
	runnel bench produce --topic idle --records "$((partitions * 10))" >/dev/null 2>&1
	pause "${SETTLE:-60}"
	ticks() { awk '{print $14 + $15}' "/proc/$(pid "$1")/stat"; }
	for node in "${nodes[@]}" metadata-1 metadata-2 etcd; do begin[$node]=$(ticks "$node"); done
	pause 20
	for node in "${nodes[@]}" metadata-1 metadata-2 etcd; do
		local used
		used=$(awk "BEGIN {print ($(ticks "$node") - ${begin[$node]}) / $(getconf CLK_TCK) / 20 * 100}")
		if [[ $node = storage-* ]]; then
			verdict "$node: under 5 % of a core" "$used < 5" "$used %, $(awk '/^VmRSS/ {printf "%d", $2 / 1024}' "/proc/$(pid "$node")/status") MiB"
		else
			row "$node" "$used %, $(awk '/^VmRSS/ {printf "%d", $2 / 1024}' "/proc/$(pid "$node")/status") MiB"
		fi
	done
}

case $scenario in
throughput | latency | failover | shutdown | idle) "$scenario" ;;
*)
	sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
exit $missed
